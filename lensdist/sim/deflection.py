"""Compute deflections of lenses: isothermal ellipsoid, power law, shear, point masses, rod."""

from __future__ import annotations

import torch

_TINY = 1e-14  # arcsec2 under every r2: no division by zero, and 1/_TINY is finite in float32


Pair = tuple[torch.Tensor, torch.Tensor]


def macro_deflection(
    x: torch.Tensor, y: torch.Tensor, kwargs_main: torch.Tensor, unit: Pair | None = None
) -> Pair:
    """Deflect by a singular isothermal ellipsoid at the origin with external shear.

    Args:
        x: (W,) arcsec.
        y: (H,) arcsec.
        kwargs_main: (M, 5) theta_E (arcsec), e1, e2, gamma1, gamma2.
        unit: the result of `unit_ellipsoid` for these ellipticities, where it is known already.

    Returns:
        alpha_x, alpha_y: (M, H, W) arcsec.
    """
    theta_e, e1, e2, g1, g2 = kwargs_main.unbind(1)
    ux, uy = unit or unit_ellipsoid(x, y, e1, e2)
    theta_e, g1, g2 = (c[:, None, None] for c in (theta_e, g1, g2))
    x, y = x[None, None, :], y[None, :, None]
    return theta_e * ux + (g1 * x + g2 * y), theta_e * uy + (g2 * x - g1 * y)


def unit_ellipsoid(x: torch.Tensor, y: torch.Tensor, e1: torch.Tensor, e2: torch.Tensor) -> Pair:
    """Deflect by a singular isothermal ellipsoid with an Einstein radius of 1.

    Kormann, Schneider & Bartelmann 1994 (A&A 284, 285) in lenstronomy's normalisation:
    q = (1-e)/(1+e), b = theta_E sqrt(q), f = sqrt(1-q^2), psi^2 = q^2 x^2 + y^2,
    alpha = b/f (atan(f x/psi), atanh(f y/psi)) in the frame of its axes.

    Args:
        x: (W,) arcsec.
        y: (H,) arcsec.
        e1: (M,) ellipticity along the axes.
        e2: (M,) ellipticity along the diagonals.

    Returns:
        alpha_x, alpha_y: (M, H, W).
    """
    x, y = x[None, None, :], y[None, :, None]
    e1, e2 = e1[:, None, None], e2[:, None, None]
    e = torch.hypot(e1, e2).clamp_max(0.9999)
    q = (1 - e) / (1 + e)
    # Both arcs tend to (x, y)/r as f goes to 0; at 1e-4 they differ by 1e-9, and 0/0 is avoided.
    f = (1 - q * q).sqrt().clamp_min(1e-4)
    phi = 0.5 * torch.atan2(e2, e1)
    cos, sin = phi.cos(), phi.sin()
    u, v = cos * x + sin * y, cos * y - sin * x
    psi = (q * q * u * u + v * v).clamp_min(_TINY).sqrt()
    scale = q.sqrt() / f
    au, av = scale * torch.atan(f * u / psi), scale * torch.atanh(f * v / psi)
    return cos * au - sin * av, sin * au + cos * av


def point_mass_sums(
    x: torch.Tensor, y: torch.Tensor, masses: torch.Tensor, budget: int
) -> torch.Tensor:
    """Return the sums S that give the deflection of point masses: (x S0 - S1, y S0 - S2).

    alpha = sum_k theta_k^2 (r - r_k)/|r - r_k|^2, with r taken out of the sum, is a product of
    a (3, K) with a (K, H W) matrix; only 1/|r - r_k|^2 is computed pixel by pixel.

    Args:
        x: (W,) arcsec.
        y: (H,) arcsec.
        masses: (N, K, 3) Einstein radius, x and y of each mass, arcsec.
        budget: numbers in the largest temporary array; so many images, or masses of one image,
            are taken at a time.

    Returns:
        (N, 3, H W): sums of theta^2/d^2, theta^2 x_k/d^2 and theta^2 y_k/d^2.
    """
    n, k, _ = masses.shape
    theta2 = masses[:, :, 0].square()
    weights = torch.stack([theta2, theta2 * masses[:, :, 1], theta2 * masses[:, :, 2]], dim=1)
    dx2 = (x - masses[:, :, 1, None]).square_().add_(_TINY)
    dy2 = (y - masses[:, :, 2, None]).square_()
    sums = x.new_zeros(n, 3, len(y) * len(x))
    step_k = max(1, min(k, budget // sums.shape[2]))
    step_n = max(1, budget // (step_k * sums.shape[2]))
    for i in range(0, n, step_n):
        for j in range(0, k, step_k):
            a, b = slice(i, i + step_n), slice(j, j + step_k)
            inverse = torch.add(dy2[a, b, :, None], dx2[a, b, None, :]).reciprocal_()
            sums[a].baddbmm_(weights[a, :, b], inverse.flatten(2))
    return sums


def rod_deflection(x: torch.Tensor, y: torch.Tensor, rod: torch.Tensor, core: float = 1e-5) -> Pair:
    """Deflect by a uniform thin rod of mass, the limit of a line of many point masses.

    In the rod's frame (u along it, half-length h, w^2 = v^2 + core^2), integrating
    theta^2/(2h) (r - r')/|r - r'|^2 along the rod gives
    alpha_u = theta^2/(2h) 1/2 ln[((u+h)^2 + w^2)/((u-h)^2 + w^2)],
    alpha_v = theta^2/(2h) (v/w) [atan((u+h)/w) - atan((u-h)/w)].

    Args:
        x: (W,) arcsec.
        y: (H,) arcsec.
        rod: (N, 5) Einstein radius of the whole rod, half-length, angle (radians from x), centre
            x, centre y; arcsec.
        core: softening across the rod, arcsec.

    Returns:
        alpha_x, alpha_y: (N, H, W) arcsec.
    """
    theta, half, angle, cx, cy = (c[:, None, None] for c in rod.unbind(1))
    cos, sin = angle.cos(), angle.sin()
    dx, dy = x[None, None, :] - cx, y[None, :, None] - cy
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    w = torch.hypot(v, v.new_tensor(core))
    ahead, behind = u + half, u - half
    scale = theta.square() / (2 * half)
    w2 = w * w
    au = 0.5 * scale * ((ahead.square() + w2) / (behind.square() + w2)).log()
    av = scale * (v / w) * (torch.atan(ahead / w) - torch.atan(behind / w))
    return cos * au - sin * av, sin * au + cos * av


def power_law_deflection(
    x: torch.Tensor, y: torch.Tensor, lens: torch.Tensor, terms: int = 8
) -> Pair:
    """Deflect by an elliptical power law, mass within r growing as r^(3 - slope).

    Tessore & Metcalf 2015 (A&A 580, A79), eq. 13 and 29, in lenstronomy's normalisation. With
    z = x + iy from the centre, E = e1 + i e2, w = z - E z*, u = w / |w| and t = slope - 1, it is
    (1+e) b (b (1+e) / |w|)^(t-1) sum_n c_n (-E*)^n u^(2n+1), which has no angle that would be
    undefined in a round lens. The series is cut off: its error is below e^terms.

    Args:
        x: (W,) or (..., H, W) arcsec.
        y: (H,) or (..., H, W) arcsec.
        lens: (M, 6) theta_E (arcsec), e1, e2, centre x and y (arcsec), and slope - 2.
        terms: of the series.

    Returns:
        alpha_x, alpha_y: (M, H, W) arcsec.
    """
    theta, e1, e2, cx, cy, slope = lens[:, :, None, None].unbind(1)
    x = (x if x.dim() > 1 else x[None, None, :]) - cx
    y = (y if y.dim() > 1 else y[None, :, None]) - cy
    e = torch.hypot(e1, e2)
    wx, wy = x - (e1 * x + e2 * y), y - (e2 * x - e1 * y)
    w2 = (wx * wx + wy * wy).clamp_min(_TINY)
    square = torch.complex(wx * wx - wy * wy, 2 * wx * wy) / w2  # u^2
    step = -torch.complex(e1, -e2) * square
    series = torch.ones_like(step)
    for n in range(terms - 1, 0, -1):  # Horner's scheme
        series = 1 + step * series * ((2 * n - 1 + slope) / (2 * n + 1 - slope))
    b = theta * ((1 - e) / (1 + e)).sqrt()
    scale = (1 + e) * b * (b * (1 + e)).pow(slope) * w2.pow(-0.5 * (1 + slope))
    alpha = torch.complex(wx, wy) * series * scale
    return alpha.real, alpha.imag
