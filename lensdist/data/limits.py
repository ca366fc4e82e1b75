"""Limits of numbers that are measured in images: outside of them, an image is unlike the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Limits = dict[str, tuple[float, float]]
"""The lowest and the highest value of each column that is like the training images."""

_OUTSIDE = 0.01  # share of the training images beyond the quantiles, of all columns together
_MARGIN = 0.1  # of the distance between the quantiles, added on both sides
_FEW = 10.0  # a margin for few images, whose extremes say little: 10 / n of the distance


@dataclass(frozen=True)
class Examined:
    """Images as the network sees them, and whether they are like the training images.

    Attributes:
        seen: (B, C, H, W) the network's input.
        columns: (B,) numbers that were measured in each image, by name; empty for scales that
            measure none.
        flagged: (B,) bool, true where a column is outside of its limits.
    """

    seen: Tensor
    columns: dict[str, Tensor]
    flagged: Tensor


def limits_of(columns: Mapping[str, Tensor]) -> Limits:
    """Return the limits, column by column, that about 99 % of these images (N,) are inside of."""
    found, share = {}, _OUTSIDE / max(len(columns), 1)
    for name, values in columns.items():
        ends = values.new_tensor([share / 2, 1 - share / 2]).double()
        low, high = torch.quantile(values.double(), ends).tolist()
        margin = (_MARGIN + _FEW / len(values)) * (high - low)
        found[name] = (low - margin, high + margin)
    return found


def outside(columns: Mapping[str, Tensor], limits: Limits) -> dict[str, Tensor]:
    """Return, for each column that has limits, which images (B,) bool are outside of them.

    What is not a number is outside.
    """
    return {
        name: ~((values >= limits[name][0]) & (values <= limits[name][1]))
        for name, values in columns.items()
        if name in limits
    }
