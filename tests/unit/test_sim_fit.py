"""Smooth lenses fitted to images: what is left is noise where there is nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lensdist.sim.config import SimConfig
from lensdist.sim.families import FAMILIES
from lensdist.sim.fit import SmoothLensFit, _ciotti_bertin
from lensdist.sim.raytrace import render
from lensdist.sim.simulator import Simulator
from lensdist.utils import rng

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")


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


def _binned_chi2(chi: Tensor) -> Tensor:
    """(N,) chi squared per bin of 5x5 pixels: 1 for noise, more where neighbours agree."""
    return (torch.nn.functional.avg_pool2d(chi[:, None], 5) * 5).square().mean((1, 2, 3))


def test_draws_what_the_simulator_does(fit: SmoothLensFit) -> None:
    _, _, p = _images(4, classes=("no",), noise="none")
    source = torch.tensor([[0.0, 1.5]]).expand(4, 2)  # of the family's own radius and index
    params = torch.cat(
        [p["kwargs_main"][:, [0, 3, 4]], p["source_xy"], p["source_e1_e2"], source], 1
    )
    drawn = fit._draw(params, 1)[:, 0] * p["source_amp"][:, None] / FAMILIES["common"].source_amp
    expected = render("common", p).flatten(1)
    assert float((drawn - expected).abs().max()) < 1e-7 * float(expected.max())


@pytest.mark.parametrize("binning", [1, 2])
def test_derivatives_are_those_of_finite_differences(fit: SmoothLensFit, binning: int) -> None:
    params = fit._bank[:4] + torch.tensor([0.0] * 7 + [0.1, 0.3])
    maps = fit._draw(params, binning)
    for j in range(9):
        step = torch.zeros(9, dtype=torch.float64)
        step[j] = 1e-5
        up, down = (fit._draw(params + s, binning)[:, 0] for s in (step, -step))
        expected = (up - down) / 2e-5
        assert float((maps[:, 1 + j] - expected).norm() / expected.norm()) < 1e-6, j


@pytest.mark.parametrize("psf_scale", [1.0, 0.7, 1.3])
def test_leaves_noise_of_smooth_lenses_whatever_the_optics(
    fit: SmoothLensFit, psf_scale: float
) -> None:
    images, _, _ = _images(48, classes=("no",), psf_scale=psf_scale)
    chi = fit(images).chi
    assert 0.9 < float(chi.square().mean((1, 2)).median()) < 1.1
    binned = _binned_chi2(chi)
    assert 0.85 < float(binned.median()) < 1.1
    assert float(binned.max()) < 1.6  # not one fit that went astray


@pytest.mark.parametrize("change", [{"source_n": 1.2}, {"source_n": 2.0}, {"source_radius": 0.4}])
def test_leaves_noise_of_other_sources(fit: SmoothLensFit, change: dict[str, float]) -> None:
    simulator = Simulator(SimConfig(family="common", classes=("no",)))
    if "source_n" in change:  # b_n goes with it
        b_n = float(_ciotti_bertin(torch.tensor(change["source_n"]))[0])
        change = {**change, "source_b_n": b_n}
    simulator.family = replace(simulator.family, **change)
    images = simulator.batch(rng.key(7, "other sources"), torch.arange(32))["image"][:, 0]
    assert 0.85 < float(_binned_chi2(fit(images).chi).median()) < 1.2


def test_leaves_substructure(fit: SmoothLensFit) -> None:
    images, labels, _ = _images(96)
    binned = _binned_chi2(fit(images).chi)
    smooth, subhalos, vortices = (binned[labels == k].median() for k in range(3))
    assert float(subhalos) > 1.4 * float(smooth)
    assert float(vortices) > 3 * float(smooth)


def test_finds_the_lens(fit: SmoothLensFit) -> None:
    images, _, p = _images(32, classes=("no",))
    found = fit(images).params
    assert float((found[:, 0] - p["kwargs_main"][:, 0]).abs().max()) < 0.01  # arcsec
    assert float((found[:, 3:5] - p["source_xy"]).abs().max()) < 0.02


def test_scale_and_offset_do_not_matter(fit: SmoothLensFit) -> None:
    images, _, _ = _images(16)
    chi, other = fit(images).chi, fit(300 * images - 7).chi
    assert float((chi - other).abs().median()) < 0.01


def test_an_image_s_fit_does_not_depend_on_its_batch_mates(fit: SmoothLensFit) -> None:
    images, _, _ = _images(20)
    whole = fit(images)
    for places in ([3], [19, 0, 5], list(range(19, -1, -1))):
        part = fit(images[places])
        torch.testing.assert_close(part.chi, whole.chi[places], rtol=0, atol=2e-6)
        torch.testing.assert_close(part.params, whole.params[places], rtol=0, atol=1e-7)


def test_a_blank_image_does_no_harm(fit: SmoothLensFit) -> None:
    found = fit(torch.stack([torch.zeros(150, 150), torch.rand(150, 150)]))
    assert found.chi.shape == (2, 150, 150)
    assert bool(found.chi.isfinite().all())
    assert bool(found.light.isfinite().all())
