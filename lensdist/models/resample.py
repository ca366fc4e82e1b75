"""Functions that enlarge and reduce images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bicubic(x: Tensor, factor: int) -> Tensor:
    """Interpolate bicubically (Keys 1981, a = -0.5, as PIL): (B, C, H, W) -> (B, C, f H, f W).

    torch's default is a = -0.75, which is worse on lenses. `antialias` sets it to -0.5, without
    another effect on images that grow.
    """
    return F.interpolate(x, scale_factor=factor, mode="bicubic", antialias=True)


def resized(x: Tensor, size: int) -> Tensor:
    """Resize bicubically with antialiasing: (B, C, H, W) -> (B, C, size, size)."""
    if x.shape[-2:] == (size, size):
        return x
    return F.interpolate(x, size=(size, size), mode="bicubic", antialias=True)


def enlarge(x: Tensor, factor: int) -> Tensor:
    """Repeat each pixel factor x factor times: (B, C, H, W) -> (B, C, f H, f W)."""
    return x.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def block_means(x: Tensor, factor: int) -> Tensor:
    """Average blocks, as larger pixels would: (B, C, f H, f W) -> (B, C, H, W)."""
    return F.avg_pool2d(x, factor)


def with_means(x: Tensor, means: Tensor) -> Tensor:
    """Shift each block of an image (B, C, f H, f W) to its mean in (B, C, H, W)."""
    factor = x.shape[-1] // means.shape[-1]
    return x + enlarge(means - block_means(x, factor), factor)
