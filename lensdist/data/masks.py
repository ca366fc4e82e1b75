"""Bad pixels and pixel weights of a batch: which pixels count, and how much."""

from __future__ import annotations

import torch
from torch import Tensor

Batch = dict[str, Tensor]


def pixel_weight(batch: Batch) -> Tensor | None:
    """Return how much each pixel counts, (B, 1 or C, H, W); None when all count alike."""
    weight = batch.get("weight")
    if weight is not None and weight.dim() == 3:
        weight = weight[:, None]
    if "badpix" in batch:
        bad = batch["badpix"].bool()
        good = (~(bad[:, None] if bad.dim() == 3 else bad)).float()
        weight = good if weight is None else weight * good
    return weight


def good_pixels(batch: Batch) -> Tensor | None:
    """Return which pixels count at all, (B, 1 or C, H, W) bool; None when all do."""
    weight = pixel_weight(batch)
    return None if weight is None else weight > 0


def image_means(values: Tensor, weight: Tensor | None) -> Tensor:
    """Average (B, C, H, W) to (B,) over the pixels that count, whatever the others hold."""
    axes = (1, 2, 3)
    if weight is None:
        return values.mean(axes)
    counted = torch.where(weight > 0, values, 0.0) * weight
    return counted.sum(axes) / weight.sum(axes).clamp_min(1e-12)
