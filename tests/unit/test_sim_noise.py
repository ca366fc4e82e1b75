"""Noise: means and variances against theory and against published figures."""

import numpy as np
import pytest
import torch

from lensdist.sim import FAMILIES, SimConfig, Simulator
from lensdist.sim.noise import detect, minmax
from lensdist.utils import rng

N = 3000


def draws(family, rate, exposure=None, **cfg):
    image = torch.full((N, 4, 4), rate, dtype=torch.float64)
    t = None if exposure is None else torch.full((N,), exposure, dtype=torch.float64)
    cfg = SimConfig(family=family, **cfg)
    return detect(image, FAMILIES[family], cfg, t, rng.generator(1))[0]


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_euclid_noise(rate):
    """Mean: the noiseless image. Variance, in stored units of twice the counts per second."""
    image = draws("model_ii", rate, noise="euclid")
    sky = 10 ** (-0.4 * (22.35 - 24)) * 0.101**2
    variance = 4 * ((rate / 2 + sky) * 2260 + 4 * 4.2**2) / 2260**2
    assert float(image.mean()) == pytest.approx(rate, abs=4 * (variance / image.numel()) ** 0.5)
    assert float(image.var()) == pytest.approx(variance, rel=0.03)


def test_model_i_noise():
    """Counts, with the Poisson noise twice over and a background of 0.01 per exposure."""
    rate, t = 0.3, 2000.0
    image = draws("model_i", rate, t)
    assert torch.equal(image, image.round())
    assert float(image.mean()) == pytest.approx(rate * t, rel=0.002)
    assert float(image.var()) == pytest.approx(2 * rate * t + (0.01 * t) ** 2, rel=0.03)
    dark = draws("model_i", 0.0, t)
    assert float(dark.min()) == 0
    assert float(dark.mean()) == pytest.approx(0.01 * t / (2 * np.pi) ** 0.5, rel=0.02)


def test_model_i_without_noise_is_the_expected_counts():
    assert draws("model_i", 0.3, 2000.0, noise="none").unique().tolist() == [600.0]


def test_models_ii_and_iii_are_noiseless_by_default():
    assert draws("model_iii", 0.3).unique().tolist() == [0.3]


def test_common_noise_is_that_of_published_figures():
    """var = 4.8e-6 + 1.24e-3 I after scaling to 0..1; the first term hangs on the sky's minimum."""
    samples = torch.arange(40)
    noisy, clean = (
        Simulator(SimConfig(family="common", noise=n))
        .batch(3, samples)["image"]
        .flatten(1)
        .double()
        for n in ("native", "none")
    )
    fits = []
    for y, x in zip(noisy.numpy(), clean.numpy(), strict=True):
        # Each image has its own offset and scale: fit them, then the variance of what is left.
        model = np.polyval(np.polyfit(x, y, 1, w=(1e-5 + 1e-3 * x) ** -0.5), x)
        fits.append(np.polyfit(model, (y - model) ** 2, 1, w=1 / (1e-5 + 1.24e-3 * model)))
    slope, floor = np.median(fits, axis=0)
    assert slope == pytest.approx(1.24e-3, rel=0.1)
    assert 2e-6 < floor < 8e-6


def test_minmax():
    image = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[7.0, 7.0], [7.0, 7.0]]])
    assert minmax(image).tolist() == [[[0, 0.5], [0.25, 1]], [[0, 0], [0, 0]]]
