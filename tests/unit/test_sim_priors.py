"""Priors: each image by itself, ranges, moments."""

import math

import pytest
import torch

from lensdist.sim import FAMILIES, sample
from lensdist.sim.priors import COMMON_PRIORS
from lensdist.utils.errors import UserError

KEY = 2**63 + 12345  # keys use all 64 bits


@pytest.fixture(scope="module")
def many():
    return {f: sample(f, KEY, torch.arange(6000)) for f in ("model_i", "model_ii", "common")}


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("vortex", ["points", "rod"])
def test_a_lens_depends_on_its_number_alone(family, vortex):
    whole = sample(family, KEY, torch.arange(30), vortex=vortex)
    some = torch.tensor([17, 2, 29, 8])
    part = sample(family, KEY, some, vortex=vortex)
    assert whole.keys() == part.keys()
    for name, values in part.items():
        assert torch.equal(values.nan_to_num(-1), whole[name][some].nan_to_num(-1)), name


def test_keys_make_other_lenses():
    a, b = (sample("model_ii", k, torch.arange(9))["source_xy"] for k in (1, 2))
    assert not (a == b).any()


def test_huge_sample_numbers_work():
    p = sample("model_ii", KEY, torch.tensor([2**62, 2**62 + 1]))
    assert p["source_xy"].abs().max() < 0.35


def test_classes_are_balanced_and_may_be_chosen():
    assert sample("common", 1, torch.arange(6))["label"].tolist() == [0, 1, 2, 0, 1, 2]
    p = sample("model_ii", 1, torch.arange(4), classes=("cdm", "axion"))
    assert p["label"].tolist() == [0, 1, 0, 1]
    assert p["n_point_masses"].tolist() == [25, 100, 25, 100]
    alone = sample("model_ii", 1, torch.arange(4), classes=("no_sub",))
    assert alone["point_mass_thetaE_x_y"].shape == (4, 0, 3)


def test_model_ii_source_and_main_lens(many):
    p = many["model_ii"]
    xy = p["source_xy"]
    assert xy.abs().max() < 0.35
    assert xy.mean(0).abs().max() < 0.01
    assert xy.var(0).tolist() == pytest.approx([0.7**2 / 12] * 2, rel=0.05)
    assert (p["kwargs_main"] == p["kwargs_main"][0]).all()
    assert p["kwargs_main"][0].tolist() == [1.2814905676, 0.1, 0.0, 0.05, 0.0]


def test_model_ii_subhalos(many):
    p = many["model_ii"]
    halos = p["point_mass_thetaE_x_y"][p["label"] == 1]
    assert (p["n_point_masses"][p["label"] == 1] == 25).all()
    assert (halos[:, 25:] == 0).all()
    theta, x, y = halos[:, :25].reshape(-1, 3).unbind(1)
    mass = 1e12 * (theta / 1.2814905676) ** 2
    assert 1e6 <= mass.min() < 1.001e6
    assert 9e9 < mass.max() <= 1e10 * (1 + 1e-9)
    u = (mass**0.1 - 1e6**0.1) / (1e10**0.1 - 1e6**0.1)  # uniform, if dN/dM goes as M^-1.9
    assert float(u.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(u.var()) == pytest.approx(1 / 12, rel=0.02)
    r, angle = torch.hypot(x, y), torch.atan2(y, x)
    assert r.min() >= 0.25
    assert r.max() <= 2.0
    assert float(r.mean()) == pytest.approx(1.125, abs=0.01)
    assert float(angle.var()) == pytest.approx((2 * math.pi) ** 2 / 12, rel=0.02)


def test_model_ii_vortices(many):
    p = many["model_ii"]
    axion = p["label"] == 2
    mass, line = p["axion_mass_ev"], p["point_mass_thetaE_x_y"][axion]
    assert mass[~axion].isnan().all()
    log_m = mass[axion].log10()
    assert log_m.min() > -24
    assert log_m.max() < -22
    assert float(log_m.mean()) == pytest.approx(-23, abs=0.05)
    theta = 1.2814905676 * math.sqrt(3e8 / 1e12)
    torch.testing.assert_close(line[:, :, 0], torch.full_like(line[:, :, 0], theta))
    ends = torch.hypot(line[:, -1, 1], line[:, -1, 2])
    torch.testing.assert_close(ends, 0.03e-22 / mass[axion])
    torch.testing.assert_close(line[:, 0, 1:], -line[:, -1, 1:])  # through the centre
    steps = line[:, 1:, 1:] - line[:, :-1, 1:]
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=1e-6, atol=1e-12)


def test_model_i_exposures(many):
    t = many["model_i"]["exposure"]
    assert t.min() > 10**3.0
    assert t.max() < 10**3.5
    assert float(t.log10().mean()) == pytest.approx(3.25, abs=0.01)


def test_common_lens_and_source(many):
    p = many["common"]
    theta, e1, e2, g1, g2 = p["kwargs_main"].unbind(1)
    assert (e1 == 0).all()
    assert (e2 == 0).all()
    assert 1.0 <= theta.min() < theta.max() <= 1.55
    assert float(theta.mean()) == pytest.approx(1.275, abs=0.01)
    gamma, angle = torch.hypot(g1, g2), torch.rad2deg(torch.atan2(g2, g1)) / 2
    assert gamma.max() <= 0.3
    assert float(gamma.mean()) == pytest.approx(0.15, abs=0.005)
    assert 0 <= angle.min() < angle.max() <= 2 * math.pi  # degrees: one axis for all
    e = torch.hypot(*p["source_e1_e2"].unbind(1))
    q = (1 - e) / (1 + e)
    assert 0.4 <= q.min() < q.max() <= 1.0
    assert float(q.mean()) == pytest.approx(0.7, abs=0.01)
    r = torch.hypot(*p["source_xy"].unbind(1))
    assert r.max() <= 0.5
    assert float(r.mean()) == pytest.approx(0.25, abs=0.01)
    assert (p["source_amp"] == 1.0).all()
    before = sample("common", KEY, torch.arange(6000), calibration="figures")["source_amp"]
    assert 0.7 <= before.min() < before.max() <= 0.9


@pytest.mark.parametrize("calibration", list(COMMON_PRIORS))
def test_common_substructure(calibration):
    prior = COMMON_PRIORS[calibration]
    p = sample("common", KEY, torch.arange(6000), calibration=calibration)
    part = (p["point_mass_thetaE_x_y"][:, :, 0] / p["kwargs_main"][:, :1]) ** 2  # of the mass
    label = p["label"]
    sphere, vort = part[label == 1][:, :25], part[label == 2]
    low, high = prior.subhalo
    assert low <= sphere.min() < sphere.max() <= high
    total = {"figures": 25 * 1.65e-3, "real": 25 * 1.815e-3}[calibration]
    assert float(sphere.sum(1).mean()) == pytest.approx(total, rel=0.02)
    assert torch.hypot(*p["point_mass_thetaE_x_y"][label == 1][:, :25, 1:].unbind(2)).max() <= 2
    low, high = prior.vortex
    assert low <= vort.sum(1).min() < vort.sum(1).max() <= high
    assert (p["n_point_masses"][label == 2] == prior.vortex_points).all()
    line = p["point_mass_thetaE_x_y"][label == 2][:, : prior.vortex_points, 1:]
    length = (line[:, -1] - line[:, 0]).norm(dim=1)
    low, high = prior.vortex_length
    assert low <= length.min() < length.max() <= high
    offset = line.mean(1).norm(dim=1)
    assert 0.25 <= offset.min() < offset.max() <= 1.15


def test_substructure_scale_is_a_factor_on_mass():
    full, tenth = (
        sample("model_ii", KEY, torch.arange(6), substructure_scale=s)["point_mass_thetaE_x_y"]
        for s in (1.0, 0.1)
    )
    torch.testing.assert_close(tenth[..., 0] ** 2, full[..., 0] ** 2 / 10)
    assert torch.equal(tenth[..., 1:], full[..., 1:])


@pytest.mark.parametrize(
    ("family", "classes"), [("model_v", None), ("common", ("cdm",)), ("sr", ())]
)
def test_unknown_names_are_refused(family, classes):
    with pytest.raises(UserError, match=r"model_v|cdm|no, sphere, vort"):
        sample(family, 1, torch.arange(3), classes=classes)
