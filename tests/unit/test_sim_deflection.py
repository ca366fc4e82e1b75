"""Deflections against caustics, closed forms and each other."""

import caustics.lenses.func as caustics
import pytest
import torch

from lensdist.sim.deflection import (
    macro_deflection,
    point_mass_sums,
    power_law_deflection,
    rod_deflection,
)
from lensdist.sim.priors import sample

X = (torch.arange(40, dtype=torch.float64) - 19.5) * 0.1
Y = X.flip(0)[:30]
GX, GY = X.expand(30, 40), Y[:, None].expand(30, 40)


def points(masses, budget=2**18):
    s0, s1, s2 = point_mass_sums(X, Y, masses, budget).view(-1, 3, 30, 40).unbind(1)
    return GX * s0 - s1, GY * s0 - s2


@pytest.mark.parametrize(("e1", "e2"), [(0.1, 0.0), (-0.2, 0.05), (0.0, 0.3), (0.1, -0.1)])
def test_ellipsoid_and_shear_match_caustics(e1, e2):
    e, phi = (e1**2 + e2**2) ** 0.5, 0.5 * torch.atan2(torch.tensor(e2), torch.tensor(e1)).double()
    q = torch.tensor((1 - e) / (1 + e), dtype=torch.float64)
    ax, ay = caustics.reduced_deflection_angle_sie(0.0, 0.0, q, phi, 1.28, GX, GY)
    sx, sy = caustics.reduced_deflection_angle_external_shear(0.0, 0.0, 0.05, -0.03, GX, GY)
    kwargs = torch.tensor([[1.28, e1, e2, 0.05, -0.03]], dtype=torch.float64)
    ours_x, ours_y = macro_deflection(X, Y, kwargs)
    torch.testing.assert_close(ours_x[0], ax + sx, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours_y[0], ay + sy, rtol=1e-6, atol=1e-6)


def test_sphere_is_the_limit_of_ellipsoids():
    ax, ay = macro_deflection(X, Y, torch.tensor([[1.5, 0, 0, 0, 0]], dtype=torch.float64))
    r = torch.hypot(GX, GY)
    torch.testing.assert_close(ax[0], 1.5 * GX / r, rtol=0, atol=1e-8)
    torch.testing.assert_close(ay[0], 1.5 * GY / r, rtol=0, atol=1e-8)


def test_lenses_of_one_batch_do_not_mix():
    kwargs = torch.tensor([[1.2, 0.1, 0, 0.05, 0], [1.5, -0.1, 0.2, 0, 0.1]], dtype=torch.float64)
    both = macro_deflection(X, Y, kwargs)
    for i in range(2):
        for got, alone in zip(both, macro_deflection(X, Y, kwargs[i : i + 1]), strict=True):
            assert torch.equal(got[i], alone[0])


@pytest.mark.parametrize("budget", [1, 5_000, 2**18])
def test_point_masses_match_caustics(budget):
    masses = sample("model_ii", 1, torch.tensor([1, 4]))["point_mass_thetaE_x_y"][:, :25]
    ax, ay = points(masses, budget)
    for i, lens in enumerate(masses):
        ex, ey = torch.zeros_like(GX), torch.zeros_like(GX)
        for theta, px, py in lens:
            dx, dy = caustics.reduced_deflection_angle_point(px, py, theta, GX, GY)
            ex, ey = ex + dx, ey + dy
        torch.testing.assert_close(ax[i], ex, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(ay[i], ey, rtol=1e-9, atol=1e-12)


def test_a_mass_on_a_pixel_gives_no_infinity():
    mass = torch.tensor([[[0.02, float(X[3]), float(Y[5])]]])
    sums = point_mass_sums(X.float(), Y.float(), mass, 2**18)
    assert torch.isfinite(sums).all()


def test_rod_is_the_limit_of_many_points():
    rod = torch.tensor([[0.25, 0.8, 0.7, 0.2, -0.1]], dtype=torch.float64)
    n = 20_000
    along = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 1.6 - 0.8
    angle = rod[0, 2]
    masses = torch.stack(
        [
            torch.full((n,), 0.25 / n**0.5, dtype=torch.float64),
            0.2 + along * angle.cos(),
            -0.1 + along * angle.sin(),
        ],
        dim=1,
    )[None]
    for got, expected in zip(rod_deflection(X, Y, rod), points(masses), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-8)


def test_short_rod_is_a_point():
    rod = torch.tensor([[0.25, 1e-3, 0.3, 0.21, -0.12]], dtype=torch.float64)
    got = rod_deflection(X, Y, rod)
    expected = points(torch.tensor([[[0.25, 0.21, -0.12]]], dtype=torch.float64))
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("slope", [-0.2, 0.0, 0.15])
@pytest.mark.parametrize(("e1", "e2"), [(0.0, 0.0), (0.1, 0.0), (-0.2, 0.05)])
def test_power_laws_match_caustics(e1, e2, slope):
    e, phi = (e1**2 + e2**2) ** 0.5, 0.5 * torch.atan2(torch.tensor(e2), torch.tensor(e1)).double()
    q, t = (torch.tensor(v, dtype=torch.float64) for v in ((1 - e) / (1 + e), 1 + slope))
    ax, ay = caustics.reduced_deflection_angle_epl(0.02, -0.01, q, phi, 1.28, t, GX, GY, 50)
    lens = torch.tensor([[1.28, e1, e2, 0.02, -0.01, slope]], dtype=torch.float64)
    ours_x, ours_y = power_law_deflection(X, Y, lens, 12)
    torch.testing.assert_close(ours_x[0], ax, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours_y[0], ay, rtol=1e-6, atol=1e-6)
    few_x, few_y = power_law_deflection(X, Y, lens, 6)
    assert float(torch.hypot(few_x - ours_x, few_y - ours_y).max()) < 2e-4
