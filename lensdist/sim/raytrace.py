"""Draw noiseless images of given lenses: ray tracing, source light, blur."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lensdist.sim.config import LensLight
from lensdist.sim.deflection import (
    Pair,
    macro_deflection,
    point_mass_sums,
    rod_deflection,
    unit_ellipsoid,
)
from lensdist.sim.families import Family, family_of, linear_b_n
from lensdist.sim.light import blur, exact_matmul, sersic, sersic_total
from lensdist.utils.errors import UserError

# Pixels drawn at once, and numbers in the temporary array of point masses: small enough for a
# CPU's caches, large enough to fill a GPU (a few GB of its memory).
_PIXELS = {"cpu": 2**17, "cuda": 2**26}
_POINTS = {"cpu": 2**18, "cuda": 2**28}


def render(
    family: str | Family,
    params: Mapping[str, Any],
    dtype: torch.dtype = torch.float64,
    *,
    lens_light: LensLight | None = None,
    supersample: int = 1,
) -> torch.Tensor:
    """Draw lenses, without noise.

    Args:
        family: a family's name, or a `Family` (a changed copy makes a changed instrument).
        params: arrays or tensors with a leading batch axis; all but the first may be missing.
            `source_xy` (N, 2) arcsec;
            `source_e1_e2` (N, 2) ellipticity of the source;
            `source_amp` (N,) brightness at its half-light radius;
            `kwargs_main` (N, 5) or (5,) theta_E, e1, e2, gamma1, gamma2 of the main lens;
            `point_mass_thetaE_x_y` (N, K, 3) arcsec, of which the first
            `n_point_masses` (N,) rows count (all, if missing);
            `rod_thetaE_half_angle_x_y` (N, 5): rows of zero Einstein radius have no rod.
            Other keys are ignored. The device is that of `source_xy`.
        dtype: float32 or float64.
        lens_light: light of the lens, for families with a zero point.
        supersample: points on a side of each pixel, evenly spaced, whose light is averaged before
            the blur. The blur's kernel stays one of whole pixels, as in lenstronomy's
            `supersampling_factor` without `supersampling_convolution`.

    Returns:
        (N, H, W) noiseless images in the family's stored units (Models II and III: twice the
        counts per second; Model I: counts per unit of exposure; common: before noise and scaling).

    Raises:
        UserError: a family, key, shape or dtype that cannot be drawn.
    """
    family = family if isinstance(family, Family) else family_of(family)
    if dtype not in (torch.float32, torch.float64):
        raise UserError(f"render draws in float32 or float64, not {dtype}")
    p = _tensors(family, params)
    n_images, device = len(p["source_xy"]), p["source_xy"].device
    n_fine = family.n_pix * supersample
    x, y = _axes(n_fine, family.pixel_scale / supersample, family.y_up, dtype, device)
    out = torch.empty(n_images, family.n_pix, family.n_pix, dtype=dtype, device=device)
    with exact_matmul(device):
        unlensed = None if lens_light is None else _lens_light(family, lens_light, x, y)
        # The unit deflection depends on the ellipticity alone: where the batch shares it (as in
        # all families), compute it once.
        e = p["kwargs_main"][:1, 1:3]
        shared = bool((p["kwargs_main"][:, 1:3] == e).all())
        unit = unit_ellipsoid(x, y, *e.to(dtype).unbind(1)) if shared else None
        # Images with the same number of point masses go together, so that no smooth lens computes
        # the hundred masses of a vortex.
        counts = p.pop("n_point_masses")
        for n_masses in sorted(set(counts.tolist())):
            rows = (counts == n_masses).nonzero()[:, 0]
            for part in rows.split(max(1, _PIXELS.get(device.type, 2**20) // n_fine**2)):
                chunk = {k: v[part].to(dtype) if len(v) > 1 else v.to(dtype) for k, v in p.items()}
                masses = chunk.pop("point_mass_thetaE_x_y")[:, :n_masses]
                light = _lensed_source(family, chunk, masses, unit, x, y)
                if unlensed is not None:
                    light += unlensed
                if supersample > 1:
                    light = F.avg_pool2d(light[:, None], supersample)[:, 0]
                out.index_copy_(0, part, blur(light, family.psf_fwhm / family.pixel_scale))
    return out


@cache
def _axes(
    n_pix: int, scale: float, y_up: bool, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    x = (torch.arange(n_pix, dtype=torch.float64) - (n_pix - 1) / 2) * scale
    y = x.flip(0) if y_up else x
    return x.to(device, dtype), y.to(device, dtype)


_SHAPES = {
    "source_xy": (2,),
    "source_e1_e2": (2,),
    "source_amp": (),
    "kwargs_main": (5,),
    "point_mass_thetaE_x_y": (None, 3),
    "n_point_masses": (),
    "rod_thetaE_half_angle_x_y": (5,),
}


def _tensors(family: Family, params: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the known parameters as tensors on one device, with defaults, of checked shapes.

    Parameters that all images share have a batch axis of 1.
    """
    if "source_xy" not in params:
        raise UserError("params need source_xy, an (N, 2) array of the sources' places in arcsec")
    p = {}
    for name in _SHAPES.keys() & params.keys():
        value = params[name]
        try:
            p[name] = torch.as_tensor(value if isinstance(value, torch.Tensor) else np.array(value))
        except (TypeError, ValueError) as error:
            raise UserError(f"params: {name} is not an array of numbers") from error
    device, n = p["source_xy"].device, len(p["source_xy"])
    p = {k: v.to(device) for k, v in p.items()}
    if "kwargs_main" in p and p["kwargs_main"].shape == (5,):  # the shape in the golden files
        p["kwargs_main"] = p["kwargs_main"].expand(n, 5)
    for name, value in p.items():
        shape, tail = tuple(value.shape), _SHAPES[name]
        fits = len(shape) == 1 + len(tail) and shape[0] == n
        if not fits or any(t not in (None, s) for t, s in zip(tail, shape[1:], strict=True)):
            raise UserError(f"params: {name} has the shape {shape}, which does not fit {n} images")

    def shared(*values: float) -> torch.Tensor:
        return torch.tensor([values], dtype=torch.float64, device=device)

    main = p.setdefault("kwargs_main", shared(*family.main_lens))
    if n and bool((main == main[:1]).all()):  # one lens for all: deflect once, not N times
        p["kwargs_main"] = main[:1]
    p.setdefault("source_e1_e2", shared(*family.source_e))
    p.setdefault("source_amp", shared(_amplitude(family))[0])
    masses = p.setdefault("point_mass_thetaE_x_y", shared().new_zeros(n, 0, 3))
    counts = p.setdefault("n_point_masses", torch.full((n,), masses.shape[1], device=device))
    if n and not 0 <= int(counts.min()) <= int(counts.max()) <= masses.shape[1]:
        raise UserError(f"params: n_point_masses must be 0 to {masses.shape[1]}, the rows given")
    return p


def _amplitude(family: Family) -> float:
    """Return the brightness at the half-light radius; with a zero point, counts/s/arcsec2."""
    if family.zero_point is None or family.source_mag is None:
        return family.source_amp
    total = 10 ** (-0.4 * (family.source_mag - family.zero_point))
    return total / sersic_total(family.source_radius, family.source_n, family.source_b_n)


def _pixel_units(family: Family) -> float:
    area = family.pixel_scale**2 if family.pixel_area else 1.0
    return family.stored_as * area


def _lensed_source(
    family: Family,
    p: dict[str, torch.Tensor],
    masses: torch.Tensor,
    unit: Pair | None,
    x: torch.Tensor,
    y: torch.Tensor,
) -> torch.Tensor:
    """Return the light of the lensed sources of one chunk, (n, H, W), before the blur."""
    scale = family.deflection_scale
    ax, ay = macro_deflection(x, y, p["kwargs_main"], unit)
    sx, sy = p["source_xy"][:, :, None, None].unbind(1)
    # Position in the source plane relative to the source: theta - alpha - source.
    dx = (x - scale * ax) - sx
    dy = (y[:, None] - scale * ay) - sy
    if masses.shape[1]:
        sums = point_mass_sums(x, y, masses, _POINTS.get(x.device.type, 2**20)).mul_(scale)
        s0, s1, s2 = sums.view(-1, 3, len(y), len(x)).unbind(1)
        dx.add_(s1).addcmul_(s0, x.expand_as(s0), value=-1)
        dy.add_(s2).addcmul_(s0, y[:, None].expand_as(s0), value=-1)
    rod = p.get("rod_thetaE_half_angle_x_y")
    if rod is not None:
        with_rod = (rod[:, 0] > 0).nonzero()[:, 0]
        if len(with_rod):
            rx, ry = rod_deflection(x, y, rod[with_rod])
            dx[with_rod] -= scale * rx
            dy[with_rod] -= scale * ry
    e1, e2 = p["source_e1_e2"].unbind(1)
    amp = p["source_amp"] * _pixel_units(family)
    shape = {"radius": family.source_radius, "n": family.source_n, "b_n": family.source_b_n}
    return sersic(dx, dy, amp, e1, e2, **shape)


def _lens_light(family: Family, light: LensLight, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the light of the lens, (1, H, W), before the blur."""
    if family.zero_point is None:
        raise UserError(f"lens_light has a magnitude, and {family.name} has no zero point")
    b_n = linear_b_n(light.n)
    total = 10 ** (-0.4 * (light.magnitude - family.zero_point)) * _pixel_units(family)
    amp = total / sersic_total(light.radius, light.n, b_n)
    dy, dx = torch.meshgrid(y, x, indexing="ij")
    numbers = (x.new_tensor([v]) for v in (amp, light.e1, light.e2))
    return sersic(dx[None].clone(), dy[None], *numbers, radius=light.radius, n=light.n, b_n=b_n)
