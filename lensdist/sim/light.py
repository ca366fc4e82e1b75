"""Draw Sersic profiles, and blur them by the point-spread function."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

from lensdist.sim.families import FWHM_PER_SIGMA


def sersic_total(radius: float, n: float, b_n: float) -> float:
    """Return the flux of a Sersic profile of unit brightness at its half-light radius (arcsec2).

    Graham & Driver 2005 (PASA 22, 118), eq. 4: 2 pi n R^2 e^b b^(-2n) Gamma(2n).
    """
    return 2 * math.pi * n * radius**2 * math.exp(b_n) * math.pow(b_n, -2 * n) * math.gamma(2 * n)


def sersic(
    dx: torch.Tensor,
    dy: torch.Tensor,
    amp: torch.Tensor,
    e1: torch.Tensor,
    e2: torch.Tensor,
    *,
    radius: float,
    n: float,
    b_n: float,
) -> torch.Tensor:
    """Compute the brightness of elliptical Sersic profiles; `dx` is overwritten.

    The elliptical radius is the product average sqrt(q u^2 + v^2/q), written with
    e = (1-q)/(1+q) (cos 2 phi, sin 2 phi) as |(1-e1) x - e2 y, (1+e1) y - e2 x|^2 / (1-|e|^2).

    Args:
        dx: (N, H, W) arcsec from the centre.
        dy: (N, H, W) arcsec from the centre.
        amp: (N,) brightness at the half-light radius.
        e1: (N,) ellipticity along the axes.
        e2: (N,) ellipticity along the diagonals.
        radius: half-light radius, arcsec.
        n: Sersic index.
        b_n: the index's b_n.

    Returns:
        (N, H, W) brightness, in the units of `amp`.
    """
    norm = 1 / ((1 - e1 * e1 - e2 * e2) * radius**2)
    xx, yy, xy = (
        (c * norm)[:, None, None]
        for c in ((1 - e1) ** 2 + e2 * e2, (1 + e1) ** 2 + e2 * e2, -4 * e2)
    )
    # (R/radius)^2 = xx dx^2 + xy dx dy + yy dy^2
    r2 = (xx * dx).addcmul_(dy, xy).mul_(dx)
    r2.addcmul_(torch.mul(dy, yy, out=dx), dy)
    r2.clamp_min_((1e-5 / radius) ** 2)  # lenstronomy smooths the centre inside 1e-5 arcsec
    power = r2.sqrt_() if n == 1 else r2.pow_(0.5 / n)
    return power.mul_(-b_n).add_((amp.log() + b_n)[:, None, None]).exp_()


def blur(image: torch.Tensor, fwhm_pix: float, truncation: float = 4.0) -> torch.Tensor:
    """Convolve with a Gaussian sampled at pixel centres, out to `truncation` sigma, sum 1.

    lenstronomy 1.9.2 cuts at 4 sigma whatever truncation its PSF is given, and beyond the
    edge repeats the last pixel; a dark outside would be wrong by 1.4e-5 of Model III's peak.

    Args:
        image: (N, S, S).
        fwhm_pix: full width at half maximum, pixels.
        truncation: half-width of the kernel, sigma.

    Returns:
        (N, S, S), a new tensor.
    """
    matrix = blur_matrix(image.shape[-1], fwhm_pix, truncation, image.dtype, image.device)
    # One product with a banded matrix each for rows and columns: faster than a convolution at
    # these sizes, and the edges are part of the matrix.
    return torch.matmul(matrix, torch.matmul(image, matrix.T))


@lru_cache(maxsize=32)
def blur_matrix(
    size: int, fwhm_pix: float, truncation: float, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Return the matrix (S, S) with which `blur` multiplies columns and, transposed, rows."""
    sigma = fwhm_pix / FWHM_PER_SIGMA
    reach = int(truncation * sigma + 0.5)
    offset = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offset.double() / sigma) ** 2)
    kernel /= kernel.sum()
    rows = torch.arange(size)[:, None].expand(size, len(offset))
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.index_put_(
        (rows, (rows + offset).clamp(0, size - 1)), kernel.expand(size, -1), accumulate=True
    )
    return matrix.to(device, dtype)


@contextmanager
def exact_matmul(device: torch.device) -> Iterator[None]:
    """Compute matrix products in full precision, whatever the training around them has set.

    TF32 or bfloat16 products would lose three digits of an image.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
