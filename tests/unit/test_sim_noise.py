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


# Worked out by hand: electrons a second for a stored unit, sky electrons a pixel in all exposures.
# euclid: 10^(0.4 (25.72 - 24)) / 2 and 10^(-0.4 (22.3 - 25.72)) 0.101^2 2264.
# deeplense_euclid: 1/2 and 10^(-0.4 (22.35 - 24)) 0.101^2 2260.
EUCLID = {"euclid": (2.4378, 538.96, 2264.0), "deeplense_euclid": (0.5, 105.39, 2260.0)}


@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize("noise", list(EUCLID))
def test_euclid_noise(noise, rate):
    """Mean: the noiseless image. Variance: that of its electrons, in stored units."""
    gain, sky, time = EUCLID[noise]
    image = draws("model_ii", rate, noise=noise)
    variance = (rate * gain * time + sky + 4 * 4.2**2) / (gain * time) ** 2
    assert float(image.mean()) == pytest.approx(rate, abs=4 * (variance / image.numel()) ** 0.5)
    assert float(image.var()) == pytest.approx(variance, rel=0.03)


def test_the_background_is_2_6_times_quieter_than_deeplensesims():
    quiet, loud = (float(draws("model_ii", 0.0, noise=n).std()) for n in EUCLID)
    assert loud / quiet == pytest.approx(2.6, rel=0.05)


def test_a_zero_point_is_the_electrons_of_a_flux():
    """A detector that sees 2.512 times as many electrons, of source and sky, without read noise."""
    old = {"noise": "deeplense_euclid", "read_noise": 0}
    before, after = (float(draws("model_ii", 0.3, **old, zero_point=z).var()) for z in (24.0, 25.0))
    assert before / after == pytest.approx(2.512, rel=0.04)
    assert draws("model_ii", 0.3, **old, zero_point=24.0).equal(draws("model_ii", 0.3, **old))


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


def test_common_images_are_counts_as_real_files_are():
    """Integers over (max - min); 740 to 890 of them; a sky of 10 (real: 10.0 +- 0.1)."""
    cfg = SimConfig(family="common", classes=("no",))
    images = Simulator(cfg, dtype=torch.float64).batch(3, torch.arange(30))["image"][:, 0]
    assert (images.amin((1, 2)) == 0).all()
    assert (images.amax((1, 2)) == 1).all()
    counts = []
    for image in images:
        span = 1 / image.unique().diff().min()
        assert 600 < span < 1000
        counts.append(image * span)
        torch.testing.assert_close(counts[-1], counts[-1].round(), rtol=0, atol=1e-8)
    # A corner, where the source leaves a tenth of a count: the variance is that of the sky.
    assert float(torch.stack(counts)[:, :12, :12].flatten(1).var(1).mean()) == pytest.approx(
        10.1, abs=0.7
    )


def test_the_calibration_of_figures_is_the_one_before():
    """125 counts for a brightness of 1 and a sky of 12.5, on a scale that a bright pixel sets."""
    cfg = SimConfig(family="common", calibration="figures")
    image = torch.zeros(300, 20, 20, dtype=torch.float64)
    image[:, 10, 10] = 8000.0  # its noise is 0.1 % of it
    seen = detect(image, Simulator(cfg).family, cfg, None, rng.generator(1))[0]
    sky = seen[:, :10] * 1_000_000
    assert float(sky.var(dim=(1, 2)).mean()) == pytest.approx(12.5, rel=0.03)


def test_minmax():
    image = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[7.0, 7.0], [7.0, 7.0]]])
    assert minmax(image).tolist() == [[[0, 0.5], [0.25, 1]], [[0, 0], [0, 0]]]
