"""Simulate the images of a benchmark."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from lensdist.data.dataset import PackedSet
from lensdist.data.packing.simulated import write_packed
from lensdist.sim.config import SimConfig
from lensdist.utils.errors import UserError


def simulated_set(
    path: Path, sim: SimConfig, n_per_class: int, seed: int, *, truth: bool = False
) -> PackedSet:
    """Return the packed set of a benchmark; simulate it if it does not exist yet.

    Raises:
        UserError: `path` holds other images.
    """
    if not path.exists():
        print(f"simulating {n_per_class:,} images per class into {path}", file=sys.stderr)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        write_packed(path, sim, n_per_class, seed, device, truth=truth)
    packed = PackedSet(path)
    wanted = {"simulated": sim.model_dump(mode="json"), "n_per_class": n_per_class, "seed": seed}
    if {key: packed.manifest.source.get(key) for key in wanted} != wanted:
        raise UserError(f"{path} holds other images than these settings define; give another --out")
    return packed
