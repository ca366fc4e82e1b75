"""Which pixels count, and how much."""

from __future__ import annotations

import torch
from torch import Tensor

from lensdist.data.dataset import Batch


def pixel_weight(batch: Batch) -> Tensor | None:
    """How much each pixel counts, (B, 1 or C, H, W); None when all count alike."""
    weight = batch.get("weight")
    if weight is not None and weight.dim() == 3:
        weight = weight[:, None]
    if "badpix" in batch:
        bad = batch["badpix"].bool()
        good = (~(bad[:, None] if bad.dim() == 3 else bad)).float()
        weight = good if weight is None else weight * good
    return weight


def good_pixels(batch: Batch) -> Tensor | None:
    """Which pixels count at all, (B, 1 or C, H, W) bool; None when all do."""
    weight = pixel_weight(batch)
    return None if weight is None else weight > 0


def image_means(values: Tensor, weight: Tensor | None) -> Tensor:
    """(B, C, H, W) -> (B,): over the pixels that count, whatever the others hold."""
    axes = (1, 2, 3)
    if weight is None:
        return values.mean(axes)
    counted = torch.where(weight > 0, values, 0.0) * weight
    return counted.sum(axes) / weight.sum(axes).clamp_min(1e-12)
