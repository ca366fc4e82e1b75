"""Estimate the noise of images from the images themselves."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

_DARK, _BRIGHT = 0.4, 0.1  # shares of the pixels that are taken for dark and for bright
_MEDIAN = 0.6745  # of the absolute value of a normal number
_BLOCK = 2  # pixels a side of the blocks whose scatter is the noise


class Noise(NamedTuple):
    """The variance of images (N, H, W) as a function of their brightness: (N, 1, 1) each."""

    dark: Tensor
    """The variance of the dark pixels: the darkest 40 % of an image."""
    level: Tensor
    """The brightness of these pixels."""
    gain: Tensor
    """How much the variance grows with the brightness."""

    def variance(self, brightness: Tensor) -> Tensor:
        """Return the variance of pixels (N, H, W) of this brightness."""
        return self.dark + self.gain * (brightness - self.level).clamp_min(0)


def noise_of(images: Tensor, binning: int) -> Noise:
    """Estimate the noise of images (N, H, W), for the means of `binning` x `binning` pixels.

    A Laplacian leaves the noise and nearly nothing of what the optics have blurred (Immerkaer
    1996, doi:10.1006/cviu.1996.0060). Its scatter in dark and in bright pixels gives the
    variance as a linear function of brightness. Where neighbours are correlated both are too
    small, by the same factor: `calibrated` finds it.
    """
    mask = images.new_tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]) / 6
    rough = F.conv2d(images[:, None], mask[None, None]).flatten(1).abs()
    smooth = F.avg_pool2d(images[:, None], 5, 1, 2, count_include_pad=False)
    smooth = smooth[:, :, 1:-1, 1:-1].flatten(1)
    order = smooth.argsort(1)
    n = order.shape[1]
    ends = order[:, : int(_DARK * n)], order[:, n - int(_BRIGHT * n) :]
    dark, bright = ((rough.gather(1, o).median(1).values / _MEDIAN).square() for o in ends)
    low, high = (smooth.gather(1, o).mean(1) for o in ends)
    dark = dark.clamp_min(1e-30)
    gain = ((bright - dark) / (high - low).clamp_min(1e-30)).clamp_min(0)
    dark, low, gain = (v[:, None, None] for v in (dark, low, gain))
    return Noise(dark / binning**2, low, gain / binning**2)


def calibrated(chi: Tensor, light: Tensor) -> tuple[Tensor, Tensor]:
    """Return by how much residuals scatter where there is no light: in blocks, and in pixels.

    Args:
        chi: (N, H, W) residuals in units of the noise, if that were known and not correlated.
        light: (N, H, W) the model.

    Returns:
        The standard deviation of the means of blocks of 2x2, times 2, and that of pixels:
        (N, 1, 1) each; without correlation they are the same.
    """
    found = []
    for block in (_BLOCK, 1):
        values, dark = (F.avg_pool2d(v[:, None], block).flatten(1) for v in (chi, light))
        order = dark.argsort(1)[:, : int(_DARK * dark.shape[1])]
        values = values.gather(1, order) * block
        values = values - values.median(1, keepdim=True).values
        most = 3 / _MEDIAN * values.abs().median(1, keepdim=True).values
        spread = values.clamp(-most, most).square().mean(1).sqrt()
        found.append(spread.clamp_min(1e-30)[:, None, None])
    return found[0], found[1]
