"""Folders as people have them, small."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lensdist.data.packing.writer import PackedWriter, Sample
from lensdist.data.reading.object_arrays import save_axion


def image(seed: int, *shape: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).random(shape or (8, 8))


def common(root: Path, train: int = 20, val: int = 4) -> Path:
    """The common task: {train,val}/{no,sphere,vort}/<int>.npy and macOS's twin tree."""
    seed = 0
    for split, n in (("train", train), ("val", val)):
        for name in ("vort", "no", "sphere"):
            folder = root / "dataset" / split / name
            twin = root / "__MACOSX" / "dataset" / split / name
            folder.mkdir(parents=True)
            twin.mkdir(parents=True)
            for i in range(n):
                seed += 1
                np.save(folder / f"{i}.npy", image(seed, 1, 8, 8))
                (twin / f"._{i}.npy").write_bytes(b"\x00\x05\x16\x07")
    return root


def model_ii(root: Path, n: int = 20) -> Path:
    """Task VI.A: {no_sub,cdm,axion}/{class}_sim_<128-bit int>.npy; axion files are pickled."""
    for k, name in enumerate(("no_sub", "cdm", "axion")):
        folder = root / "Dataset" / name
        folder.mkdir(parents=True)
        for i in range(n):
            path = folder / f"{name}_sim_{2**127 + i * 7919 + k}.npy"
            pixels = 4 * image(1000 * k + i)
            if name == "axion":
                save_axion(path, pixels, 10.0 ** -(23 + i / 100))
            else:
                np.save(path, pixels)
    return root


def pairs(root: Path, n: int = 12) -> Path:
    """Task VI.B: {HR,LR}/sample<N>.npy, LR the block mean of HR."""
    for side in ("HR", "LR"):
        (root / "Dataset" / side).mkdir(parents=True)
    for i in range(n):
        hr = image(i, 1, 8, 8)
        np.save(root / "Dataset" / "HR" / f"sample{i}.npy", hr)
        lr = hr.reshape(1, 4, 2, 4, 2).mean(axis=(2, 4))
        np.save(root / "Dataset" / "LR" / f"sample{i}.npy", lr)
    return root


def add_all(
    writer: PackedWriter,
    images: Iterable[Any],
    labels: Iterable[int] | None = None,
    names: Iterable[str] | None = None,
    **arrays: Iterable[Any],
) -> None:
    """Add samples without labels, or with; `arrays` are other fields of `Sample`, a value each."""
    images = list(images)
    labels = [-1] * len(images) if labels is None else labels
    names = map(str, range(len(images))) if names is None else names
    rows = zip(*arrays.values(), strict=True) if arrays else [()] * len(images)
    for image, label, name, row in zip(images, labels, names, rows, strict=True):
        fields = dict(zip(arrays, row, strict=True))
        writer.add(Sample(image, int(label), name, **fields))
