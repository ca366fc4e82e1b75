"""Enlarge lensing images without an MAE: interpolation, the best linear filter, EDSR.

Each method maps LR (N, C, H, W) to (N, C, f H, f W) in the same units.
"""

from __future__ import annotations

import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from lensdist.models.resample import bicubic, enlarge

_RIDGE = 1e-12  # share of the normal equations' mean eigenvalue, for rounding only


def nearest(x: Tensor, factor: int) -> Tensor:
    """Repeat each pixel factor x factor times: (N, C, H, W) -> (N, C, f H, f W)."""
    return enlarge(x, factor)


def bilinear(x: Tensor, factor: int) -> Tensor:
    """Interpolate (N, C, H, W) -> (N, C, f H, f W), keeping the position of pixel centres."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


INTERPOLATIONS = {"nearest": nearest, "bilinear": bilinear, "bicubic": bicubic}


class LinearFilter:
    """The linear filter with the least squared error: one kernel on LR per sub-pixel, no bias.

    Its gain over bicubic is the most that any interpolation can gain; bands are treated alike.

    Args:
        kernels: (f f, 1, k, k), k odd; sub-pixels in the order of `torch.pixel_shuffle`.
    """

    def __init__(self, kernels: Tensor) -> None:
        self.kernels = kernels
        self.factor = math.isqrt(len(kernels))

    @classmethod
    def fit(cls, lr: Tensor, hr: Tensor, factor: int, kernel: int = 7, batch: int = 16) -> Self:
        """Fit the kernels by least squares over all pixels of all pairs, including the border.

        Args:
            lr: (N, C, H, W).
            hr: (N, C, f H, f W).
            factor: f.
            kernel: pixels per side of LR that a sub-pixel uses; odd.
            batch: images at a time: each needs 8 k k C H W bytes.

        Raises:
            RuntimeError: torch's, if the shapes do not match, or all pixels of LR are 0.
        """
        taps, subpixels = kernel**2, factor**2
        gram = torch.zeros(taps, taps, dtype=torch.float64, device=lr.device)
        moments = torch.zeros(taps, subpixels, dtype=torch.float64, device=lr.device)
        for x, y in zip(torch.split(lr, batch), torch.split(hr, batch), strict=True):
            seen = F.unfold(_padded(x.double(), kernel), kernel)
            wanted = F.pixel_unshuffle(y.double().flatten(0, 1)[:, None], factor).flatten(2)
            gram += (seen @ seen.mT).sum(0)
            moments += (seen @ wanted.mT).sum(0)
        gram.diagonal().add_(_RIDGE * gram.trace() / taps)
        kernels = torch.linalg.solve(gram, moments).T
        return cls(kernels.reshape(subpixels, 1, kernel, kernel))

    def __call__(self, x: Tensor) -> Tensor:
        """Enlarge (N, C, H, W) -> (N, C, f H, f W)."""
        kernels = self.kernels.to(x)
        drawn = F.conv2d(_padded(x, kernels.shape[-1]), kernels)
        drawn = F.pixel_shuffle(drawn, self.factor)
        return drawn.view(*x.shape[:2], *drawn.shape[-2:])


def _padded(x: Tensor, kernel: int) -> Tensor:
    """Pad (N, C, H, W) -> (N C, 1, H + k - 1, W + k - 1): each band alone, its borders repeated."""
    return F.pad(x.flatten(0, 1)[:, None], [kernel // 2] * 4, mode="replicate")
