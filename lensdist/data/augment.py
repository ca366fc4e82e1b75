"""Augment images by turns and mirrors, batched on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from lensdist.data.config import AugmentConfig
from lensdist.utils import rng

Turn = tuple[bool, bool, bool]
"""Flags: turn by 180°, turn by 90°, mirror; applied in this order."""


def views(cfg: AugmentConfig) -> tuple[Turn, ...]:
    """Return the turns that augmentation may draw; the first leaves an image as it is."""
    ways = [(False, True) if on else (False,) for on in (cfg.rot180, cfg.rot90, cfg.flip)]
    return tuple((a, b, c) for a in ways[0] for b in ways[1] for c in ways[2])


def draw_views(cfg: AugmentConfig, key: int, samples: Tensor) -> Tensor:
    """Draw the index into `views` of each sample, (B,) int64, with equal probability."""
    draw = rng.uniform(key, samples, 3) < 0.5
    number = torch.zeros_like(samples)
    for column, on in enumerate((cfg.rot180, cfg.rot90, cfg.flip)):
        if on:
            number = 2 * number + draw[:, column]
    return number


def turn(x: Tensor, way: Turn) -> Tensor:
    """Turn and mirror images (…, H, W), all in the same way."""
    rot180, rot90, flip = way
    if rot180:
        x = x.flip(-2, -1)
    if rot90:  # with rot180 these are all four turns
        x = x.rot90(1, (-2, -1))
    return x.flip(-1) if flip else x


def turned(batch: dict[str, Tensor], way: Turn) -> dict[str, Tensor]:
    """Turn every image-shaped entry of a batch, all samples in the same way."""
    return {name: turn(x, way) if x.dim() >= 3 else x for name, x in batch.items()}


def augment(cfg: AugmentConfig, key: int, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn and mirror every image-shaped entry of a batch, each sample by its own draw."""
    ways = views(cfg)
    if len(ways) == 1:
        return batch
    number = draw_views(cfg, key, batch["sample"])
    out = dict(batch)
    for name, x in batch.items():
        if x.dim() < 3:
            continue
        for k, way in enumerate(ways[1:], start=1):
            mine = (number == k).reshape(-1, *[1] * (x.dim() - 1))
            out[name] = torch.where(mine, turn(x, way), out[name])
    return out
