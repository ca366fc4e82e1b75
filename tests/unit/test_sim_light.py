"""Sersic profiles and the blur."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.special import gammaincinv

from lensdist.sim.families import FAMILIES, linear_b_n
from lensdist.sim.light import blur, exact_matmul, sersic, sersic_total


def profile(n, b_n, e1=0.0, e2=0.0, radius=0.5, half=12.0, size=2400):
    """Brightness of 1 at the half-light radius, on a fine grid, and the grid's step."""
    step = 2 * half / size
    x = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) * step
    dy, dx = torch.meshgrid(x, x, indexing="ij")
    one, e1, e2 = (torch.tensor([v], dtype=torch.float64) for v in (1.0, e1, e2))
    image = sersic(dx[None].clone(), dy[None], one, e1, e2, radius=radius, n=n, b_n=b_n)
    return image[0], dx, dy, step


@pytest.mark.parametrize("n", [1.0, 1.5])
@pytest.mark.parametrize("e", [(0.0, 0.0), (-0.1, 0.1), (0.3, 0.0)])
def test_total_flux_is_the_sum_over_pixels(n, e):
    image, _, _, step = profile(n, linear_b_n(n), *e)
    assert float(image.sum()) * step**2 == pytest.approx(
        sersic_total(0.5, n, linear_b_n(n)), rel=2e-4
    )


def test_half_the_light_is_inside_the_half_light_radius():
    b_n = FAMILIES["common"].source_b_n
    assert b_n == pytest.approx(gammaincinv(3.0, 0.5), rel=1e-5)  # n = 1.5: 2n = 3
    image, dx, dy, _ = profile(1.5, b_n)
    assert float(image[torch.hypot(dx, dy) < 0.5].sum() / image.sum()) == pytest.approx(
        0.5, abs=2e-3
    )


def test_ellipse_lies_along_its_angle():
    """e = (1-q)/(1+q) (cos 2 phi, sin 2 phi): contours sqrt(q u^2 + v^2/q) with u along phi."""
    q, phi = 0.5, 0.6
    e = (1 - q) / (1 + q)
    image, dx, dy, _ = profile(1, 1.67, e * math.cos(2 * phi), e * math.sin(2 * phi), size=400)
    u = math.cos(phi) * dx + math.sin(phi) * dy
    v = math.cos(phi) * dy - math.sin(phi) * dx
    expected = torch.exp(-1.67 * ((q * u**2 + v**2 / q).sqrt() / 0.5 - 1))
    torch.testing.assert_close(image, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("fwhm_pix", [0.3, 1.0, 1.58, 4.05])
def test_blur_is_scipys(fwhm_pix):
    image = np.random.default_rng(0).random((3, 20, 20))
    sigma = fwhm_pix / (2 * math.sqrt(2 * math.log(2)))
    for got, before in zip(blur(torch.from_numpy(image), fwhm_pix), image, strict=True):
        expected = gaussian_filter(before, sigma, mode="nearest", truncate=4.0)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


def test_products_are_exact_inside_training():
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), exact_matmul(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
