"""Write simulated sets: packed, or in the raw layouts of the public sets.

Both hold the same images for the same settings and seed. Neither overwrites anything, and a set
has its name only once it is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lensdist.data.manifest import Manifest
from lensdist.data.packing.writer import Instrument, PackedWriter, Sample
from lensdist.data.reading.object_arrays import save_axion
from lensdist.sim.config import SimConfig
from lensdist.sim.simulator import Simulator
from lensdist.utils import rng
from lensdist.utils.errors import UserError
from lensdist.utils.staging import Staging, check_free

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
        dest: the folder to make; it must not exist, or be empty.
        cfg: the settings of the simulator.
        n_per_class: images of each class, at least 1.
        seed: seed of the images and of the splits.
        device: the device to simulate on.
        progress: see `Progress`.
        truth: for pairs, also keep the targets without their noise.

    Raises:
        UserError: `dest` holds something, or truth is asked for without pairs.
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
        instrument=Instrument(sim.pixel_scale, sim.psf_fwhm, sim.zero_point),
    ) as writer:
        total = n_per_class * len(sim.labels)
        for tensors, _ in sim.blocks(seed, total):
            batch = _to_numpy(tensors)
            for i, number in enumerate(batch["sample"].tolist()):
                path = _path(cfg, number, n_per_class, seed)
                sample = Sample(
                    batch["image"][i],
                    -1 if pairs else int(batch["label"][i]),
                    str(path),
                    mass=float(batch["mass"][i]),
                    target=batch["target"][i] if pairs else None,
                    truth=batch["truth"][i] if truth else None,
                    # The common task's own `val` is its test set; the rest is not split yet.
                    split="test" if path.parts[0] == "val" else None,
                )
                writer.add(sample)
            progress(number + 1, total)
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
    """Simulate files as the public sets have them (float64 `.npy`).

    Models I to III: `{class}/{class}_sim_<128-bit int>.npy`, (H, W); axion files are pairs of
    image and axion mass. Common: `{train,val}/{class}/<int>.npy`, (1, H, W) in 0..1, a fifth in
    val. Pairs: `{HR,LR}/sample<N>.npy`, (1, H, W).

    Args:
        dest: the folder to make; it must not exist, or be empty.
        cfg: the settings of the simulator.
        n_per_class: images of each class, at least 1.
        seed: seed of the images; the same seed gives the same file names.
        device: the device to simulate on.
        progress: see `Progress`.
        params: also write `DEST.params.npz`: the arguments of `lensdist.sim.render`, and each
            file's `path`. It lies beside the set, which holds images only, as the public sets do.

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
        total = n_per_class * len(sim.labels)
        for tensors, lenses in sim.blocks(seed, total):
            batch = _to_numpy(tensors)
            numbers = batch["sample"].tolist()
            paths = [_path(cfg, number, n_per_class, seed) for number in numbers]
            for i, path in enumerate(paths):
                _write_one(staging.folder, path, {k: v[i] for k, v in batch.items()})
            if params:
                names = {"path": np.array([str(path) for path in paths])}
                for name, values in {**_to_numpy(lenses), **names}.items():
                    drawn.setdefault(name, []).append(values)
            progress(numbers[-1] + 1, total)
        if params:
            columns: dict[str, Any] = {k: np.concatenate(v) for k, v in drawn.items()}
            np.savez(staging.folder / "params.npz", **columns)
            (staging.folder / "params.npz").rename(beside)
        staging.publish()
    finally:
        staging.discard()


def _to_numpy(tensors: dict[str, torch.Tensor]) -> dict[str, Array]:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def _path(cfg: SimConfig, sample: int, n_per_class: int, seed: int) -> Path:
    """Return where the raw layout keeps a sample; of a pair, where its HR half is."""
    if cfg.family == "sr":
        return Path("HR", f"sample{sample + 1}.npy")
    number, label = divmod(sample, len(cfg.labels))
    name = cfg.labels[label]
    if cfg.family == "common":
        split = "val" if number >= n_per_class - cfg.test_images(n_per_class) else "train"
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
    elif len(path.parts) == 2:  # Models I to III have no channel axis
        np.save(file, sample["image"][0])
    else:
        np.save(file, sample["image"])
