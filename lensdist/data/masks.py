"""Weigh pixels by the masks and weight maps of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from lensdist.data.dataset import Batch


def pixel_weight(batch: Batch) -> Tensor | None:
    """Return the weight of each pixel, (B, 1 or C, H, W); None when all pixels count equally."""
    weight = batch.get("weight")
    if weight is not None and weight.dim() == 3:
        weight = weight[:, None]
    if "badpix" in batch:
        bad = batch["badpix"].bool()
        good = (~(bad[:, None] if bad.dim() == 3 else bad)).float()
        weight = good if weight is None else weight * good
    return weight


def good_pixels(batch: Batch) -> Tensor | None:
    """Mark the pixels with a weight above 0, (B, 1 or C, H, W) bool; None when all have one."""
    weight = pixel_weight(batch)
    return None if weight is None else weight > 0


def image_means(values: Tensor, weight: Tensor | None) -> Tensor:
    """Return each image's weighted mean, (B, C, H, W) -> (B,); pixels of weight 0 may hold NaN."""
    axes = (1, 2, 3)
    if weight is None:
        return values.mean(axes)
    weight = weight.expand_as(values)  # one mask for all bands counts once for each
    counted = torch.where(weight > 0, values, 0.0) * weight
    return counted.sum(axes) / weight.sum(axes).clamp_min(1e-12)
