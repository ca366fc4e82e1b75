"""Batches: shapes, determinism, stress tests, and what is refused."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from benchmarks.simulator import with_caustics
from lensdist.sim import FAMILIES, LensLight, SimConfig, Simulator, render, sample
from lensdist.utils import rng
from lensdist.utils.errors import UserError

KEY = 99


@pytest.mark.parametrize("family", list(FAMILIES))
def test_batch_has_what_training_needs(family):
    sim = Simulator(SimConfig(family=family))
    samples = torch.tensor([7, 3, 5, 2])
    batch = sim.batch(KEY, samples)
    n = {"model_i": 150, "common": 150, "sr": 75}.get(family, 64)
    assert sim.image_shape == (1, n, n)
    assert batch["image"].shape == (4, 1, n, n)
    assert batch["image"].dtype == torch.float32
    assert torch.isfinite(batch["image"]).all()
    assert batch["label"].tolist() == [1, 0, 2, 2]
    assert batch["label"].dtype == batch["sample"].dtype == torch.int64
    assert torch.equal(batch["sample"], samples)
    assert batch["mass"].dtype == torch.float64
    is_axion = torch.tensor([sim.labels[i] == "axion" for i in batch["label"]])
    assert torch.equal(batch["mass"].isfinite(), is_axion)
    assert ("target" in batch) == (family == "sr")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_batches_are_functions_of_key_and_samples(family):
    def again(key):
        return Simulator(SimConfig(family=family)).batch(key, torch.arange(6, 12))["image"]

    first = again(KEY)
    torch.manual_seed(0)  # the global generator has no say
    assert torch.equal(first, again(KEY))
    assert not torch.equal(first, again(KEY + 1))


@pytest.mark.parametrize("family", ["model_ii", "common"])
def test_an_image_does_not_depend_on_its_batch(family):
    sim = Simulator(SimConfig(family=family, noise="none"), dtype=torch.float64)
    whole = sim.batch(KEY, torch.arange(24))["image"]
    some = torch.tensor([20, 4, 9])
    torch.testing.assert_close(sim.batch(KEY, some)["image"], whole[some], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["model_i", "model_ii", "model_iii", "common"])
def test_float32_agrees_with_float64(family):
    params = sample(family, KEY, torch.arange(30))
    exact = render(family, params, torch.float64)
    off = (render(family, params, torch.float32) - exact).abs().amax((1, 2))
    assert (off / exact.amax((1, 2))).max() < 2e-4
    assert (off / exact.amax((1, 2))).median() < 5e-6


@pytest.mark.parametrize("family", ["model_i", "model_iii", "common"])
def test_whole_images_match_caustics(family):
    """With the function that the benchmark times, so that the two draw the same lenses."""
    params = sample(family, KEY, torch.arange(6))
    ours, theirs = render(family, params), with_caustics(FAMILIES[family], params)
    if FAMILIES[family].y_up:
        theirs = theirs.flip(1)
    ours, theirs = (i / i.mean((1, 2), keepdim=True) for i in (ours, theirs.double()))
    assert (ours - theirs).abs().max() < 1e-3 * ours.max()


def test_low_resolution_is_the_block_mean():
    batch = Simulator(SimConfig(family="sr")).batch(KEY, torch.arange(5))
    high = batch["target"].double()
    assert high.amin((1, 2, 3)).tolist() == [0.0] * 5
    assert high.amax((1, 2, 3)).tolist() == [1.0] * 5
    mean = high.view(5, 1, 75, 2, 75, 2).mean((3, 5))
    torch.testing.assert_close(batch["image"].double(), mean, rtol=0, atol=1e-7)


def test_pairs_are_common_images():
    pairs = Simulator(SimConfig(family="sr")).batch(KEY, torch.arange(5))
    common = Simulator(SimConfig(family="common")).batch(KEY, torch.arange(5))
    assert torch.equal(pairs["target"], common["image"])


def test_facts_of_the_instrument():
    sim = Simulator(SimConfig(family="model_ii"))
    assert (sim.labels, sim.pixel_scale, sim.psf_fwhm, sim.zero_point) == (
        ("no_sub", "cdm", "axion"),
        0.101,
        0.16,
        24.0,
    )
    pairs = Simulator(SimConfig(family="sr", classes=("vort", "no")))
    assert (pairs.labels, pairs.pixel_scale, pairs.zero_point) == (("no", "vort"), 0.1, None)


def first_image(**settings):
    sim = Simulator(SimConfig(family="model_ii", **settings), dtype=torch.float64)
    return sim.batch(KEY, torch.tensor([0]))["image"][0, 0]


def test_two_magnitudes_are_a_factor_of_flux():
    torch.testing.assert_close(first_image(source_mag=22), first_image() * 10**-0.8)


def test_wider_blur_keeps_the_flux():
    plain, wide = first_image(), first_image(psf_scale=3.0)
    assert float(wide.sum()) == pytest.approx(float(plain.sum()), rel=1e-3)
    assert wide.max() < 0.9 * plain.max()


def test_lens_light_has_its_magnitude():
    light = LensLight(magnitude=18, radius=0.3, n=1.0, e1=0.2)
    added = first_image(lens_light=light) - first_image()
    assert float(added.sum()) == pytest.approx(2 * 10 ** (-0.4 * (18 - 24)), rel=0.01)
    np.testing.assert_allclose(added, added.flip(0), atol=1e-9)
    columns, rows = added.sum(0), added.sum(1)
    assert columns.max() < rows.max()  # e1 > 0: longer along x


def test_a_rounder_lens_is_another_image():
    assert (first_image(e1=0.0, e2=0.0) - first_image()).abs().max() > 0.1
    torch.testing.assert_close(first_image(e1=0.1, e2=0.0), first_image())


def test_rod_vortex_is_close_to_its_points():
    """100 points are a rod 100/99 as long, up to the grain near the line."""
    points, rod = (
        Simulator(SimConfig(family="common", noise="none", classes=("vort",), vortex=v)).batch(
            KEY, torch.arange(8)
        )["image"]
        for v in ("points", "rod")
    )
    assert (points - rod).abs().mean() < 2e-3


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"family": "model_iv"}, "model_i"),
        ({"classes": ("sphere",)}, "no_sub, cdm, axion"),
        ({"classes": ()}, "at least one"),
        ({"classes": ("cdm", "cdm")}, "once"),
        ({"family": "common", "noise": "euclid"}, "zero point"),
        ({"family": "model_i", "source_mag": 22}, "zero point"),
        ({"family": "sr", "lens_light": {"magnitude": 18}}, "zero point"),
        ({"substructure_scale": 0}, "greater than 0"),
        ({"exposure_s": float("nan")}, "finite number"),
        ({"e1": 0.8}, "less than"),
        ({"e1": 0.6, "e2": 0.6}, "rounder"),
        ({"nosie": "none"}, "not permitted"),
    ],
)
def test_impossible_settings_are_refused(settings, told):
    with pytest.raises(ValidationError, match=told):
        SimConfig(**settings)


GOOD = {"source_xy": np.zeros((2, 2))}


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({}, "source_xy"),
        ({"source_xy": np.zeros((2, 3))}, "source_xy"),
        ({"source_xy": np.zeros(2)}, "source_xy"),
        (GOOD | {"kwargs_main": np.zeros((3, 5))}, "kwargs_main"),
        (GOOD | {"point_mass_thetaE_x_y": np.zeros((2, 4))}, "point_mass"),
        (GOOD | {"n_point_masses": np.array([0, 1])}, "n_point_masses"),
        (GOOD | {"source_amp": np.array(["a", "b"])}, "source_amp"),
    ],
)
def test_params_that_do_not_fit_are_refused(params, told):
    with pytest.raises(UserError, match=told):
        render("model_ii", params)


def test_other_mistakes_of_render_are_refused():
    with pytest.raises(UserError, match="model_v"):
        render("model_v", GOOD)
    with pytest.raises(UserError, match="float16"):
        render("model_ii", GOOD, torch.float16)
    with pytest.raises(UserError, match="zero point"):
        render("common", GOOD, lens_light=LensLight(magnitude=18))


def test_no_lenses_make_no_images():
    assert render("model_ii", {"source_xy": np.zeros((0, 2))}).shape == (0, 64, 64)


def test_render_leaves_its_params_alone():
    params = sample("model_ii", KEY, torch.arange(6))
    before = {k: v.clone() for k, v in params.items()}
    render("model_ii", params)
    for name, values in params.items():
        assert torch.equal(values.nan_to_num(-1), before[name].nan_to_num(-1))


def test_lighter_substructure_is_drawn_evenly_in_the_logarithm_of_mass():
    samples, key = torch.arange(600), rng.key(0, "lightest")
    given = {"family": "common", "classes": ("vort",), "vortex": "rod"}
    full, lighter = (
        Simulator(SimConfig(**given, **more)).params(key, samples)["rod_thetaE_half_angle_x_y"]
        for more in ({}, {"lightest": 0.25})
    )
    mass = (lighter[:, 0] / full[:, 0]).square()
    assert 0.25 <= float(mass.min()) < 0.27
    assert 0.95 < float(mass.max()) <= 1
    assert abs(float(mass.median()) - 0.5) < 0.05
    torch.testing.assert_close(lighter[:, 1:], full[:, 1:])
