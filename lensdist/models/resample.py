"""Images made larger and smaller."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bicubic(x: Tensor, factor: int) -> Tensor:
    """Bicubic interpolation (Keys 1981, a = -0.5, as PIL's): (B, C, H, W) -> (B, C, f H, f W).

    torch's own default is a = -0.75, which is worse on lenses; with `antialias`, which does nothing
    else where an image grows, it is -0.5.
    """
    return F.interpolate(x, scale_factor=factor, mode="bicubic", antialias=True)


def resized(x: Tensor, size: int) -> Tensor:
    """(B, C, H, W) -> (B, C, size, size), bicubic, without aliases where it shrinks."""
    if x.shape[-2:] == (size, size):
        return x
    return F.interpolate(x, size=(size, size), mode="bicubic", antialias=True)


def enlarge(x: Tensor, factor: int) -> Tensor:
    """Each pixel as factor x factor alike: (B, C, H, W) -> (B, C, f H, f W)."""
    return x.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def block_means(x: Tensor, factor: int) -> Tensor:
    """What a detector with larger pixels sees: (B, C, f H, f W) -> (B, C, H, W)."""
    return F.avg_pool2d(x, factor)


def with_means(x: Tensor, means: Tensor) -> Tensor:
    """An image (B, C, f H, f W), each block moved to its mean in (B, C, H, W)."""
    factor = x.shape[-1] // means.shape[-1]
    return x + enlarge(means - block_means(x, factor), factor)
