"""Simulated sets on disk: the raw layouts that people have, and packed sets.

Both hold the same images for the same settings and seed. Neither overwrites anything, and a set
has its name only once it is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lensdist import rng
from lensdist.data.manifest import Manifest
from lensdist.data.packing.writer import PackedWriter
from lensdist.data.reading.object_arrays import save_axion
from lensdist.errors import UserError
from lensdist.sim.config import SimConfig
from lensdist.sim.simulator import Simulator
from lensdist.staging import Staging, check_free

BLOCK = 128  # images that share a noise generator; part of what a seed means

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""

Array = npt.NDArray[Any]


def _quiet(done: int, total: int) -> None:
    pass


def write_packed(
    dest: Path,
    cfg: SimConfig,
    n_per_class: int,
    seed: int,
    device: str = "cpu",
    progress: Progress = _quiet,
    *,
    truth: bool = False,
) -> Manifest:
    """Simulate a packed set: float32, with labels, axion masses and splits.

    Args:
        dest: the folder to make; must not exist, or be empty.
        cfg: what to simulate.
        n_per_class: images of each class, at least 1.
        seed: of the images and of the splits.
        device: where to simulate.
        progress: told how far it is.
        truth: of pairs, also keep the targets without their noise.

    Raises:
        UserError: `dest` holds something, or truth is asked of what is no pairs.
    """
    sim = Simulator(cfg, device, torch.float64)
    pairs = cfg.family == "sr"
    if truth and not pairs:
        raise UserError(f"truth goes with pairs (family sr), not with {cfg.family}")
    with PackedWriter(
        dest,
        labels=[] if pairs else list(sim.labels),
        seed=seed,
        source={
            "simulated": cfg.model_dump(mode="json"),
            "n_per_class": n_per_class,
            "seed": seed,
        },
        kind="pairs" if pairs else "classify",
        pixel_scale_arcsec=sim.pixel_scale,
        psf_fwhm_arcsec=sim.psf_fwhm,
        zero_point_mag=sim.zero_point,
    ) as writer:
        for batch, _ in _blocks(sim, n_per_class, seed, progress):
            for i, sample in enumerate(batch["sample"].tolist()):
                path = _path(sim, sample, n_per_class, seed)
                writer.add(
                    batch["image"][i],
                    label=-1 if pairs else int(batch["label"][i]),
                    name=str(path),
                    mass=float(batch["mass"][i]),
                    target=batch["target"][i] if pairs else None,
                    truth=batch["truth"][i] if truth else None,
                    # The common task's own `val` is its test set; the rest is ours to split.
                    split="test" if path.parts[0] == "val" else None,
                )
        return writer.finish()


def write_raw(
    dest: Path,
    cfg: SimConfig,
    n_per_class: int,
    seed: int,
    device: str = "cpu",
    progress: Progress = _quiet,
    *,
    params: bool = False,
) -> None:
    """Simulate files as people have them (float64 `.npy`).

    Models I to III: `{class}/{class}_sim_<128-bit int>.npy`, (H, W); axion files are pairs of
    image and axion mass. Common: `{train,val}/{class}/<int>.npy`, (1, H, W) in 0..1, a fifth in
    val. Pairs: `{HR,LR}/sample<N>.npy`, (1, H, W).

    Args:
        dest: the folder to make; must not exist, or be empty.
        cfg: what to simulate.
        n_per_class: images of each class, at least 1.
        seed: of the images; the same seed gives the same file names.
        device: where to simulate.
        progress: told how far it is.
        params: also write `DEST.params.npz`: what `lensdist.sim.render` takes, and each file's
            `path`. Beside the set and not in it, which holds images only, as people's own do.

    Raises:
        UserError: `dest` holds something, or `DEST.params.npz` exists.
    """
    sim = Simulator(cfg, device, torch.float64)
    drawn: dict[str, list[Array]] = {}
    staging = Staging(dest)
    beside = staging.dest.with_name(f"{staging.dest.name}.params.npz")
    try:
        if params:
            check_free(beside)
        for batch, lenses in _blocks(sim, n_per_class, seed, progress):
            paths = [_path(sim, s, n_per_class, seed) for s in batch["sample"].tolist()]
            for i, path in enumerate(paths):
                _write_one(staging.folder, path, {k: v[i] for k, v in batch.items()})
            if params:
                lenses["path"] = np.array([str(path) for path in paths])
                for name, values in lenses.items():
                    drawn.setdefault(name, []).append(values)
        if params:
            columns: dict[str, Any] = {k: np.concatenate(v) for k, v in drawn.items()}
            np.savez(staging.folder / "params.npz", **columns)
            (staging.folder / "params.npz").rename(beside)
        staging.publish()
    finally:
        staging.discard()


def _blocks(
    sim: Simulator, n_per_class: int, seed: int, progress: Progress
) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """Batches and the lenses in them, as NumPy arrays."""
    key, total = rng.key(seed, "simulate"), n_per_class * len(sim.labels)
    for start in range(0, total, BLOCK):
        samples = torch.arange(start, min(start + BLOCK, total))
        lenses = sim.params(key, samples)
        batch = sim.images(key, samples, lenses)
        yield _to_numpy(batch), _to_numpy(lenses)
        progress(int(samples[-1]) + 1, total)


def _to_numpy(tensors: dict[str, torch.Tensor]) -> dict[str, Array]:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def _path(sim: Simulator, sample: int, n_per_class: int, seed: int) -> Path:
    """Where the raw layout keeps a sample (a pair: its high-resolution half)."""
    if sim.cfg.family == "sr":
        return Path("HR", f"sample{sample + 1}.npy")
    number, label = divmod(sample, len(sim.labels))
    name = sim.labels[label]
    if sim.cfg.family == "common":
        split = "val" if number >= n_per_class - n_per_class // 5 else "train"
        return Path(split, name, f"{number + 1}.npy")
    high, low = (rng.key(seed, "file", half, sample) for half in (0, 1))
    return Path(name, f"{name}_sim_{high << 64 | low}.npy")


def _write_one(folder: Path, path: Path, sample: dict[str, Array]) -> None:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    if "target" in sample:
        low = folder / "LR" / path.name
        low.parent.mkdir(exist_ok=True)
        np.save(file, sample["target"])
        np.save(low, sample["image"])
    elif path.parts[0] == "axion":
        save_axion(file, sample["image"][0], float(sample["mass"]))
    elif len(path.parts) == 2:  # Models I to III have no axis of channels
        np.save(file, sample["image"][0])
    else:
        np.save(file, sample["image"])
