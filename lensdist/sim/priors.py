"""Draw lenses from a family's priors, each a function of (key, sample number) alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lensdist.sim.config import Calibration, Vortex
from lensdist.sim.families import FAMILIES, THETA_E_1E12, Family, family_of
from lensdist.utils import rng
from lensdist.utils.errors import UserError

N_SUBHALOS = 25
N_VORTEX = 100
"""The point masses of a vortex of DeepLenseSim."""


@dataclass(frozen=True)
class CommonPrior:
    """What the calibrations of `common` and `sr` disagree about; each pair is a uniform range.

    Masses are parts of the mass inside the main lens's Einstein radius.
    """

    source_amp: tuple[float, float]
    """Brightness of the source at its half-light radius."""
    subhalo: tuple[float, float]
    """Mass of each subhalo."""
    vortex: tuple[float, float]
    """Mass of a vortex."""
    vortex_length: tuple[float, float]
    """Arcsec."""
    vortex_points: int
    """Point masses of a vortex."""


COMMON_PRIORS: dict[Calibration, CommonPrior] = {
    # docs/physics.md says what was measured.
    "real": CommonPrior((1.0, 1.0), (3.3e-4, 3.3e-3), (0.034, 0.042), (1.0, 2.0), 25),
    # Estimated from published figures.
    "figures": CommonPrior((0.7, 0.9), (3e-4, 3e-3), (0.034, 0.047), (1.0, 3.0), N_VORTEX),
}


def sample(
    family: str,
    key: int,
    samples: torch.Tensor,
    *,
    classes: Sequence[str] | None = None,
    substructure_scale: float = 1.0,
    vortex: Vortex = "points",
    calibration: Calibration = "real",
) -> dict[str, torch.Tensor]:
    """Draw the parameters of lenses.

    Sample i is of class i modulo the number of classes, so any run of samples is balanced.

    Args:
        family: the name of the family.
        key: a key from `rng.key`.
        samples: (N,) int64 sample numbers; their device is that of the result.
        classes: the classes to draw, in label order; all by default.
        substructure_scale: factor on the mass of subhalos and vortices.
        vortex: `points`, a line of point masses, or `rod`, its limit.
        calibration: of `common` and `sr`, see `SimConfig`.

    Returns:
        The parameters of `render`, float64 with a leading batch axis, and `label` (N,) int64
        (position in `classes`). Models I to III add `axion_mass_ev` (N,), NaN where there is no
        vortex, and Model I `exposure` (N,).

    Raises:
        UserError: there is no such family or class.
    """
    known = family_of(family).labels
    classes = known if classes is None else tuple(classes)
    if not classes or not set(classes) <= set(known):
        raise UserError(f"{family} has the classes {', '.join(known)}, not {', '.join(classes)}")
    drawn = (FAMILIES[family], key, samples.long(), classes, substructure_scale, vortex)
    if known == FAMILIES["common"].labels:
        return _pyautolens(*drawn, COMMON_PRIORS[calibration])
    return _deeplense(*drawn)


def _between(u: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return low + (high - low) * u


def _polar(radius: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)


def _rows_of(name: str, classes: Sequence[str], label: torch.Tensor) -> torch.Tensor:
    if name not in classes:
        return label.new_zeros(0)
    return (label == classes.index(name)).nonzero()[:, 0]


def _no_masses(label: torch.Tensor, rows: int) -> dict[str, torch.Tensor]:
    none = torch.zeros(len(label), dtype=torch.float64, device=label.device)
    return {
        "label": label,
        "point_mass_thetaE_x_y": none.new_zeros(len(label), rows, 3),
        "n_point_masses": torch.zeros_like(label),
        "rod_thetaE_half_angle_x_y": none.new_zeros(len(label), 5),
    }


def _put_points(
    p: dict[str, torch.Tensor], rows: torch.Tensor, theta: torch.Tensor, xy: torch.Tensor
) -> None:
    masses = torch.cat([theta[..., None], xy], dim=-1)
    p["point_mass_thetaE_x_y"][rows, : masses.shape[1]] = masses
    p["n_point_masses"][rows] = masses.shape[1]


def _put_vortex(
    p: dict[str, torch.Tensor], rows: torch.Tensor, rod: torch.Tensor, vortex: Vortex, n_points: int
) -> None:
    """Put rods (R, 5), as `render` takes them, or the lines of point masses that they stand for."""
    if vortex == "rod":
        p["rod_thetaE_half_angle_x_y"][rows] = rod
        return
    theta, half, angle, *centre = rod.unbind(1)
    along = torch.linspace(-1, 1, n_points, dtype=rod.dtype, device=rod.device) * half[:, None]
    xy = _polar(along, angle[:, None]) + torch.stack(centre, dim=1)[:, None, :]
    _put_points(p, rows, (theta / math.sqrt(n_points))[:, None].expand_as(along), xy)


def _widest(
    classes: Sequence[str], subhalos: str, string: str, vortex: Vortex, n_points: int
) -> int:
    """Return the largest number of point masses in an image."""
    of_string = n_points if string in classes and vortex == "points" else 0
    return max(of_string, N_SUBHALOS if subhalos in classes else 0)


def _deeplense(
    family: Family,
    key: int,
    samples: torch.Tensor,
    classes: Sequence[str],
    substructure_scale: float,
    vortex: Vortex,
) -> dict[str, torch.Tensor]:
    """Draw from DeepLenseSim's priors (`deeplense/lens.py`): one lens, any source position."""
    p = _no_masses(samples % len(classes), _widest(classes, "cdm", "axion", vortex, N_VORTEX))
    theta_of_1 = THETA_E_1E12 * math.sqrt(substructure_scale / 1e12)  # of one solar mass

    u = rng.uniform(rng.key(key, "source"), samples, 3)
    p["source_xy"] = _between(u[:, :2], -0.35, 0.35)
    p["kwargs_main"] = u.new_tensor(family.main_lens).expand(len(samples), 5)
    if family.native_noise == "counts":
        p["exposure"] = 10 ** _between(u[:, 2], 3.0, 3.5)

    rows = _rows_of("cdm", classes, p["label"])
    if len(rows):
        u = rng.uniform(rng.key(key, "subhalos"), samples[rows], 3 * N_SUBHALOS)
        mass, radius, angle = u.view(-1, 3, N_SUBHALOS).unbind(1)
        mass = _between(mass, 1e6**0.1, 1e10**0.1) ** 10  # dN/dM as M^-1.9
        xy = _polar(_between(radius, 0.25, 2.0), 2 * math.pi * angle)
        _put_points(p, rows, theta_of_1 * mass.sqrt(), xy)

    p["axion_mass_ev"] = torch.full_like(p["source_xy"][:, 0], math.nan)
    rows = _rows_of("axion", classes, p["label"])
    if len(rows):
        u = rng.uniform(rng.key(key, "vortex"), samples[rows], 2)
        mass_ev = 10 ** _between(u[:, 1], -24, -22)
        p["axion_mass_ev"][rows] = mass_ev
        theta = torch.full_like(mass_ev, theta_of_1 * math.sqrt(3e10))  # the vortex's solar masses
        zero = torch.zeros_like(mass_ev)
        rod = [theta, 0.03e-22 / mass_ev, 2 * math.pi * u[:, 0], zero, zero]
        _put_vortex(p, rows, torch.stack(rod, dim=1), vortex, N_VORTEX)
    return p


def _pyautolens(
    family: Family,
    key: int,
    samples: torch.Tensor,
    classes: Sequence[str],
    substructure_scale: float,
    vortex: Vortex,
    prior: CommonPrior,
) -> dict[str, torch.Tensor]:
    """Draw from the priors of the common task, recovered by fitting its images.

    The old generator drew angles between 0 and 2 pi but used them as degrees, so all shears and
    all sources point nearly the same way. The data have that, so it is reproduced here.
    """
    p = _no_masses(
        samples % len(classes), _widest(classes, "sphere", "vort", vortex, prior.vortex_points)
    )

    u = rng.uniform(rng.key(key, "lens"), samples, 3)
    theta_e = _between(u[:, 0], 1.0, 1.55)
    gamma, twice = _between(u[:, 1], 0.0, 0.3), 2 * torch.deg2rad(2 * math.pi * u[:, 2])
    main = u.new_tensor(family.main_lens).repeat(len(samples), 1)
    main[:, 0] = theta_e
    main[:, 3:] = _polar(gamma, twice)
    p["kwargs_main"] = main

    u = rng.uniform(rng.key(key, "source"), samples, 5)
    p["source_xy"] = _polar(_between(u[:, 0], 0.0, 0.5), 2 * math.pi * u[:, 1])
    q, twice = _between(u[:, 2], 0.4, 1.0), 2 * torch.deg2rad(2 * math.pi * u[:, 3])
    p["source_e1_e2"] = _polar((1 - q) / (1 + q), twice)
    p["source_amp"] = _between(u[:, 4], *prior.source_amp)

    # A part f of the mass inside the main Einstein radius has theta = theta_E sqrt(f).
    part = theta_e * math.sqrt(substructure_scale)
    rows = _rows_of("sphere", classes, p["label"])
    if len(rows):
        u = rng.uniform(rng.key(key, "subhalos"), samples[rows], 3 * N_SUBHALOS)
        mass, radius, angle = u.view(-1, 3, N_SUBHALOS).unbind(1)
        xy = _polar(2.0 * radius.sqrt(), 2 * math.pi * angle)  # evenly over the disc
        _put_points(p, rows, part[rows, None] * _between(mass, *prior.subhalo).sqrt(), xy)

    rows = _rows_of("vort", classes, p["label"])
    if len(rows):
        u = rng.uniform(rng.key(key, "vortex"), samples[rows], 5)
        theta = part[rows] * _between(u[:, 0], *prior.vortex).sqrt()
        half = 0.5 * _between(u[:, 1], *prior.vortex_length)
        centre = _polar(_between(u[:, 2], 0.25, 1.15), 2 * math.pi * u[:, 3])
        rod = torch.stack([theta, half, math.pi * u[:, 4]], dim=1)
        _put_vortex(p, rows, torch.cat([rod, centre], dim=1), vortex, prior.vortex_points)
    return p
