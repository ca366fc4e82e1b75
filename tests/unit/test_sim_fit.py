"""Smooth lenses fitted to images: what is left is noise where there is nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.fit_robustness import SMOOTH, smooth_lenses
from lensdist.data.limits import limits_of, outside
from lensdist.sim.config import SimConfig
from lensdist.sim.families import FAMILIES
from lensdist.sim.fit import NUMBERS, SmoothLens, SmoothLensFit
from lensdist.sim.fit_model import NAMES, SHAPE, ciotti_bertin, padded
from lensdist.sim.fit_noise import noise_of
from lensdist.sim.raytrace import render
from lensdist.sim.simulator import Simulator
from lensdist.utils import rng

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")
EACH = 4  # images of each variant


@pytest.fixture(scope="module")
def fit() -> SmoothLensFit:
    return SmoothLensFit(FAMILIES["common"], CPU)


def _images(n: int, **settings: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Images (n, H, W), labels, and the lenses that they show."""
    simulator = Simulator(SimConfig(family="common", **settings))
    key, samples = rng.key(7, "fit"), torch.arange(n)
    params = simulator.params(key, samples)
    batch = simulator.images(key, samples, params)
    return batch["image"][:, 0], batch["label"], params


@pytest.fixture(scope="module")
def family(fit: SmoothLensFit) -> tuple[SmoothLens, Tensor]:
    """The fits of 48 images of the family, and their labels."""
    images, labels, _ = _images(48)
    return fit(images), labels


@pytest.fixture(scope="module")
def variants(fit: SmoothLensFit) -> dict[str, dict[str, Tensor]]:
    """The numbers of smooth lenses of each variant."""
    found = fit(torch.cat([smooth_lenses(s, EACH, 1)[:, 0] for s in SMOOTH.values()]))
    return {
        name: {key: value[k * EACH : (k + 1) * EACH] for key, value in found.numbers.items()}
        for k, name in enumerate(SMOOTH)
    }


def test_draws_what_the_simulator_does(fit: SmoothLensFit) -> None:
    _, _, p = _images(4, classes=("no",), noise="none")
    source = torch.tensor([[0.0, 1.5]]).expand(4, 2)  # of the family's own radius and index
    params = torch.cat(
        [p["kwargs_main"][:, [0, 3, 4]], p["source_xy"], p["source_e1_e2"], source], 1
    )
    amp = p["source_amp"] / FAMILIES["common"].source_amp
    drawn = fit.model.exact(padded(params))[0] * amp[:, None, None]
    expected = F.avg_pool2d(render("common", p)[:, None], 2)[:, 0]
    assert float((drawn - expected).abs().max()) < 1e-6 * float(expected.max())


def test_derivatives_are_those_of_finite_differences(fit: SmoothLensFit) -> None:
    p = padded(fit._bank[:2] + torch.tensor([0.0] * 7 + [0.1, 0.3]))
    odd = {"lens_e1": 0.05, "lens_e2": -0.03, "lens_x": 0.033, "slope": 0.1, "light": 0.2}
    for name, value in odd.items():
        p[:, NAMES.index(name)] = value
    bends = fit.model.bends(p)
    maps = fit.model.maps(p, bends)
    for j, name in enumerate(NAMES[:SHAPE]):
        step = torch.zeros(len(NAMES), dtype=torch.float64)
        step[j] = 1e-5
        up, down = (fit.model.maps(q, bends) for q in (p + step, p - step))
        expected = (up[:, 0] + 0.2 * up[:, 1] - down[:, 0] - 0.2 * down[:, 1]) / 2e-5
        # Those by the lens's place are limited in its centre.
        assert float((maps[:, 4 + j] - expected).norm() / expected.norm()) < 5e-3, name


def test_the_noise_of_an_image_is_found_in_it() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.linspace(-3, 3, 150, dtype=torch.float64)
    light = 10 * torch.exp(-(x**2 + x[:, None] ** 2)) + 5
    variance = 0.04 + 0.1 * (light - 5)
    images = light + variance.sqrt() * torch.randn(6, 150, 150, generator=draw).double()
    found = noise_of(images, 1)
    assert float((found.dark.sqrt() / 0.2 - 1).abs().max()) < 0.1
    assert float((found.gain.mean() / 0.1 - 1).abs()) < 0.15
    halved = noise_of(images, 2)
    torch.testing.assert_close(halved.variance(light), found.variance(light) / 4)


@pytest.mark.parametrize("name", [n for n in SMOOTH if n != "clump in the source"])
def test_leaves_noise_of_smooth_lenses(variants: dict[str, dict[str, Tensor]], name: str) -> None:
    chi2 = variants[name]["chi2"]
    assert 0.7 < float(chi2.median()) < 1.5  # of about 60 blocks: 1 +- 0.18
    assert float(chi2.max()) < 2.5


@pytest.mark.parametrize(
    ("variant", "number", "low", "high"),
    [
        ("axis ratio 0.8", "ellipticity", 0.1, 0.12),
        ("centre off 0.05 arcsec", "off_centre", 0.04, 0.06),
        ("slope 2.15", "slope", 2.1, 2.2),
        ("slope 1.9", "slope", 1.85, 1.95),
        ("lens light 20 %", "lens_light", 0.1, 0.25),
        ("PSF x 1.5", "psf_width", 0.2, 0.8),
        ("correlated noise 0.7 px", "noise_correlation", 0.7, 0.9),
    ],
)
def test_finds_what_is_unusual(
    variants: dict[str, dict[str, Tensor]], variant: str, number: str, low: float, high: float
) -> None:
    assert low < float(variants[variant][number].median()) < high
    assert not low < float(variants["as in training"][number].median()) < high


def test_flags_a_clump_in_the_source(
    variants: dict[str, dict[str, Tensor]], family: tuple[SmoothLens, Tensor]
) -> None:
    fitted, _ = family
    odd = outside(variants["clump in the source"], limits_of(fitted.numbers))
    assert bool(odd["source_clump"].all())


@pytest.mark.parametrize("change", [{"source_n": 1.2}, {"source_n": 2.0}, {"source_radius": 0.4}])
def test_leaves_noise_of_other_sources(fit: SmoothLensFit, change: dict[str, float]) -> None:
    simulator = Simulator(SimConfig(family="common", classes=("no",)))
    if "source_n" in change:  # b_n goes with it
        b_n = float(ciotti_bertin(torch.tensor(change["source_n"]))[0])
        change = {**change, "source_b_n": b_n}
    simulator.family = replace(simulator.family, **change)
    images = simulator.batch(rng.key(7, "other sources"), torch.arange(16))["image"][:, 0]
    assert 0.8 < float(fit(images).numbers["chi2"].median()) < 1.4


def test_leaves_substructure(family: tuple[SmoothLens, Tensor]) -> None:
    fitted, labels = family
    smooth, subhalos, vortices = (fitted.numbers["chi2"][labels == k].median() for k in range(3))
    assert 0.8 < float(smooth) < 1.3
    assert float(subhalos) > 2 * float(smooth)
    assert float(vortices) > 2 * float(smooth)
    assert tuple(fitted.numbers) == NUMBERS


def test_finds_the_lens(fit: SmoothLensFit) -> None:
    images, _, p = _images(16, classes=("no",))
    found = fit(images).params
    assert float((found[:, 0] - p["kwargs_main"][:, 0]).abs().max()) < 0.02  # arcsec
    assert float((found[:, 3:5] - p["source_xy"]).abs().max()) < 0.03


def test_scale_and_offset_do_not_matter(fit: SmoothLensFit) -> None:
    images, _, _ = _images(16)
    chi, other = fit(images).chi, fit(300 * images - 7).chi
    assert float((chi - other).abs().median()) < 0.01


def test_turned_images_have_turned_residuals(fit: SmoothLensFit) -> None:
    images, _, _ = _images(16)
    chi, other = fit(images).chi, fit(images.flip(1, 2)).chi.flip(1, 2)
    assert float((chi - other).abs().median()) < 0.05


def test_an_image_s_fit_does_not_depend_on_its_batch_mates(fit: SmoothLensFit) -> None:
    images, _, _ = _images(20)
    whole = fit(images)
    for places in ([3], [19, 0, 5]):
        part = fit(images[places])
        torch.testing.assert_close(part.chi, whole.chi[places], rtol=0, atol=2e-6)
        torch.testing.assert_close(part.params, whole.params[places], rtol=0, atol=1e-6)


def test_a_noise_map_is_used_as_it_is(fit: SmoothLensFit) -> None:
    images, _, _ = _images(4)
    found = fit(images)
    noise = torch.full_like(images, 0.05)
    chi = fit(images, noise).chi
    assert bool((fit(images, 2 * noise).chi.square().mean() < 0.5 * chi.square().mean()).all())
    noise[:, 40:60, 40:60] = float("inf")  # does not count
    masked = fit(images, noise).chi
    assert bool((masked[:, 20:30, 20:30] == 0).all())
    assert found.chi.shape == masked.shape == (4, 75, 75)


def test_a_measured_psf_replaces_the_family_s(fit: SmoothLensFit) -> None:
    family = FAMILIES["common"]
    offset = torch.arange(-7, 8, dtype=torch.float64)
    sigma = 0.086 / family.pixel_scale
    row = (-0.5 * (offset / sigma).square()).exp()
    measured = SmoothLensFit(family, CPU, row[:, None] * row)
    p = padded(fit._bank[:2])
    for mine, theirs in zip(measured.model.exact(p), fit.model.exact(p), strict=True):
        assert float((mine - theirs).abs().max()) < 1e-3 * float(theirs.max())


def test_a_blank_image_does_no_harm(fit: SmoothLensFit) -> None:
    found = fit(torch.stack([torch.zeros(150, 150), torch.rand(150, 150)]))
    assert found.chi.shape == (2, 75, 75)
    assert bool(found.chi.isfinite().all())
    assert bool(found.light.isfinite().all())
