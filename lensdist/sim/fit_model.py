"""Draw smooth lenses with their derivatives, for the fit.

A model image is `flux * (source + width * by_width + wing * by_wing + light * lens light) +
offset`: an elliptical Sersic source behind an elliptical power law with external shear, and a
Sersic profile of lens light, seen through a Gaussian point-spread function that is corrected to
first order.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lensdist.sim.deflection import power_law_deflection
from lensdist.sim.families import CIOTTI_BERTIN, FWHM_PER_SIGMA, Family
from lensdist.sim.light import blur_matrix

# An image's position in the batch changes the last bits of products. The residual is a small
# difference in units of the noise, so in float32 this would be visible (2e-5 in the logits).
DTYPE = torch.float64

COARSE = 2
"""Pixels a side that are averaged before images are compared: the network sees no finer ones."""

_STEP = 1e-4  # of the numerical derivatives of the deflection
_CLUMP = 0.1  # width of clumps in the source, arcsec
_STEEPEST = 10.0  # of those: a lens's at a tenth of its Einstein radius
_WIDER = 0.05  # of the numerical derivative by the logarithm of the PSF's width
_WING = 3.0  # width of the PSF's wings, in units of the PSF's


class Parameter(NamedTuple):
    """A parameter of the model: its bounds, and the Gaussian prior where it has one."""

    low: float
    high: float
    mean: float = 0.0
    sigma: float = math.inf


PARAMETERS = {
    "einstein_radius": Parameter(0.8, 1.8),
    "shear1": Parameter(-0.45, 0.45),
    "shear2": Parameter(-0.45, 0.45),
    "source_x": Parameter(-0.8, 0.8),
    "source_y": Parameter(-0.8, 0.8),
    "source_e1": Parameter(-0.6, 0.6),
    "source_e2": Parameter(-0.6, 0.6),
    "source_size": Parameter(-0.7, 0.7),
    "source_index": Parameter(0.6, 4.0),
    "lens_e1": Parameter(-0.35, 0.35, 0.0, 0.1),
    "lens_e2": Parameter(-0.35, 0.35, 0.0, 0.1),
    "lens_x": Parameter(-0.3, 0.3, 0.0, 0.05),
    "lens_y": Parameter(-0.3, 0.3, 0.0, 0.05),
    "slope": Parameter(-0.4, 0.4, 0.0, 0.15),
    "light_size": Parameter(-2.0, 1.2, -0.4, 0.5),
    "light_index": Parameter(0.6, 6.0, 3.0, 1.0),
    "light_e1": Parameter(-0.5, 0.5, 0.0, 0.1),
    "light_e2": Parameter(-0.5, 0.5, 0.0, 0.1),
    "flux": Parameter(-math.inf, math.inf),
    "offset": Parameter(-math.inf, math.inf),
    "psf_width": Parameter(-1.0, 1.0, 0.0, 0.3),
    "psf_wing": Parameter(-0.5, 0.5, 0.0, 0.1),
    "light": Parameter(-0.1, 10.0, 0.0, 0.3),
}
"""Angles in arcsec; sizes are logarithms of half-light radii, the source's in units of the family's
and the lens's of 1 arcsec; slope is the lens's minus 2. From `flux` on they are linear."""

NAMES = tuple(PARAMETERS)
SHAPE = NAMES.index("flux")
"""The number of parameters that are not linear."""
BASE = NAMES.index("lens_e1")
"""The number of those of a round isothermal lens without light."""


class SmoothLensModel:
    """The images of a family's smooth lenses, at half the resolution.

    Args:
        family: the family.
        device: the device to draw on.
        psf: (K, K) the measured point-spread function at the family's pixel scale, K odd; None: the
            family's Gaussian.
    """

    def __init__(self, family: Family, device: torch.device, psf: Tensor | None = None) -> None:
        self.family, self._device = family, device
        n, scale = family.n_pix, family.pixel_scale
        self._fine = self._axes(1)
        pooled = F.avg_pool2d(torch.eye(n, dtype=DTYPE, device=device)[None], (COARSE, 1))[0]
        pairs = [(self._blur(1, 1.0),) * 2] if psf is None else _separable(psf.to(device, DTYPE), n)
        self._pooled_blur = [(pooled @ rows, pooled @ columns) for rows, columns in pairs]
        self._coarse = self._axes(COARSE)
        self._blurs = [
            self._blur(COARSE, f) for f in (1.0, math.exp(_WIDER), math.exp(-_WIDER), _WING)
        ]
        assert n % COARSE == 0, scale

    def _axes(self, binning: int) -> tuple[Tensor, Tensor]:
        n, scale = self.family.n_pix // binning, self.family.pixel_scale * binning
        x = (torch.arange(n, dtype=DTYPE, device=self._device) - (n - 1) / 2) * scale
        y = x.flip(0) if self.family.y_up else x
        return x.expand(n, n), y[:, None].expand(n, n)

    def _blur(self, binning: int, factor: float) -> Tensor:
        """Return the matrix that blurs by the PSF times `factor` and by averaging pixels."""
        family = self.family
        box = FWHM_PER_SIGMA * family.pixel_scale * math.sqrt((binning**2 - 1) / 12)
        fwhm = math.hypot(family.psf_fwhm * factor, box) / (family.pixel_scale * binning)
        return blur_matrix(family.n_pix // binning, fwhm, 4.0, DTYPE, self._device)

    def source(self, params: Tensor, binning: int) -> Tensor:
        """Draw sources (N, S, S) of parameters (N, 9 or more), sampled at every `binning`th pixel.

        The blur is that of `binning` pixels; for the bank of first guesses.
        """
        x, y = self._axes(binning)
        p = padded(params)
        dx, dy = self._ray(p, x, y, 3)
        blur = self._blur(binning, 1.0)
        return blur @ self._sersic(dx, dy, p[:, 3:9]).light @ blur.T

    def exact(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Draw source and lens light, averaged over the pixels of the image: (N, S, S) each."""
        x, y = self._fine
        parts = []
        for one in torch.split(p, 4):  # what a CPU keeps in its caches
            dx, dy = self._ray(one, x, y, 6)
            source = self._sersic(dx, dy, one[:, 3:9]).light
            light = self._lens_light(one, x, y).light
            both = torch.stack([source, light])
            blurred = [rows @ both @ columns.T for rows, columns in self._pooled_blur]
            parts.append(torch.stack(blurred).sum(0))
        source, light = torch.cat(parts, 1).unbind(0)
        return source, light

    def bends(self, p: Tensor) -> list[tuple[Tensor, ...]]:
        """Compute the derivatives of the deflection by ellipticity, centre and slope.

        They change little while a fit moves, so it computes them once.
        """
        x, y = self._coarse
        ax, ay = power_law_deflection(x, y, p[:, _LENS], 4)
        found: list[tuple[Tensor, ...]] = []
        for k in range(1, len(_LENS)):
            moved = p[:, _LENS]
            moved[:, k] += _STEP
            bx, by = power_law_deflection(x, y, moved, 4)
            # The deflection has no derivative in the lens's centre, where a pixel may lie.
            slopes = ((d / _STEP).clamp(-_STEEPEST, _STEEPEST) for d in (bx - ax, by - ay))
            found.append(tuple(slopes))
        return found

    def maps(self, p: Tensor, bends: list[tuple[Tensor, ...]] | None = None) -> Tensor:
        """Draw the parts of the model and their derivatives, from every second pixel.

        Args:
            p: (N, P) parameters.
            bends: see `bends`; None: leave out the derivatives beyond the base parameters.

        Returns:
            (N, 4 + 18 or 9, S, S): source, lens light, by_width, by_wing, and the derivatives of
            `source + light * lens light` by the nonlinear parameters.
        """
        x, y = self._coarse
        ax, ay = power_law_deflection(x, y, p[:, _LENS], 4)
        dx, dy = self._ray(p, x, y, 4)
        source, lens_light = self._sersic(dx, dy, p[:, 3:9]), self._lens_light(p, x, y)
        by_x, by_y, *by_source = source.slopes()

        def by_deflection(bx: Tensor, by: Tensor) -> Tensor:
            return -(by_x * bx + by_y * by)

        grow = (1 + p[:, 13]) / p[:, 0]  # the deflection is proportional to theta^(1 + slope)
        shape = [
            by_deflection(ax, ay) * grow[:, None, None],
            by_deflection(x, -y),
            by_deflection(y, x),
            -by_x,
            -by_y,
            *by_source,
        ]
        if bends is not None:
            own = [by_deflection(bx, by) for bx, by in bends]
            amount = p[:, -1, None, None]
            light_x, light_y, *by_light = (amount * m for m in lens_light.slopes())
            own[2], own[3] = own[2] - light_x, own[3] - light_y
            shape += [*own, by_light[2], by_light[3], by_light[0], by_light[1]]
        blur, wide, narrow, wing = self._blurs
        blurred = blur @ torch.stack([source.light, lens_light.light, *shape], 1) @ blur.T
        light = source.light
        by_width = (wide @ light @ wide.T - narrow @ light @ narrow.T) / (2 * _WIDER)
        by_wing = wing @ light @ wing.T - blurred[:, 0]
        psf = torch.stack([by_width, by_wing], 1)
        return torch.cat([blurred[:, :2], psf, blurred[:, 2:]], 1)

    def clump(self, p: Tensor, chi: Tensor, sigma: Tensor) -> Tensor:
        """Return by how much one clump in the source would lower the sum of chi squared, (N,).

        A clump shows in all images of its part of the source, a subhalo in one. The best of 13 x 13
        Gaussian clumps counts, of any brightness.
        """
        dx, dy = (v.flatten(1)[:, None] for v in self._ray(p, *self._coarse, 4))
        places = torch.linspace(-0.6, 0.6, 13, dtype=DTYPE, device=self._device)[:, None]
        ex, ey = ((-0.5 * ((v - places) / _CLUMP).square()).exp() for v in (dx, dy))
        blur, weight = self._blurs[0], sigma.reciprocal()
        seen = (blur.T @ (chi * weight) @ blur).flatten(1)[:, None]
        score = ((ex * seen) @ ey.transpose(1, 2)).flatten(1)
        square = ex.square() * weight.square().flatten(1)[:, None]
        norm = (square @ ey.square().transpose(1, 2)).flatten(1)
        best = (score.square() / norm.clamp_min(1e-30)).argmax(1)
        rows = torch.arange(len(p), device=self._device)
        one = (ex[rows, best // 13] * ey[rows, best % 13]).view_as(chi)
        one = blur @ one @ blur.T * weight
        return (one * chi).sum((1, 2)).square() / one.square().sum((1, 2)).clamp_min(1e-30)

    def _ray(self, p: Tensor, x: Tensor, y: Tensor, terms: int) -> tuple[Tensor, Tensor]:
        """Trace pixels back to the source: their positions relative to its centre."""
        ax, ay = power_law_deflection(x, y, p[:, _LENS], terms)
        g1, g2, sx, sy = (v[:, None, None] for v in p[:, 1:5].unbind(1))
        return x - ax - g1 * x - g2 * y - sx, y - ay - g2 * x + g1 * y - sy

    def _sersic(self, dx: Tensor, dy: Tensor, p: Tensor) -> Profile:
        e1, e2, size, n = p[:, 2:, None, None].unbind(1)
        radius = self.family.source_radius * size.exp()
        return Profile(dx, dy, e1, e2, radius, n, self.family.source_amp)

    def _lens_light(self, p: Tensor, x: Tensor, y: Tensor) -> Profile:
        cx, cy = p[:, 11:13, None, None].unbind(1)
        size, n, e1, e2 = p[:, 14:18, None, None].unbind(1)
        return Profile(x - cx, y - cy, e1, e2, size.exp(), n, 1.0)


_LENS = [0, 9, 10, 11, 12, 13]  # theta_E, e1, e2, centre x and y, slope
assert NAMES[9:14] == ("lens_e1", "lens_e2", "lens_x", "lens_y", "slope")


class Profile:
    """An elliptical Sersic profile (N, H, W) of any index, as `lensdist.sim.light.sersic` draws it.

    Args:
        dx, dy: (N, H, W) arcsec from the centre.
        e1, e2, radius, n: (N, 1, 1) ellipticity, half-light radius and index.
        amp: the brightness at the half-light radius.
    """

    def __init__(
        self, dx: Tensor, dy: Tensor, e1: Tensor, e2: Tensor, radius: Tensor, n: Tensor, amp: float
    ) -> None:
        self._round = 1 / (1 - e1 * e1 - e2 * e2)
        self._norm = self._round / radius.square()
        self._given = dx, dy, e1, e2, n
        self._ab = a, b = (1 - e1) * dx - e2 * dy, (1 + e1) * dy - e2 * dx
        self._r2 = ((a * a + b * b) * self._norm).clamp_min(1e-7)
        self._power = self._r2.pow(0.5 / n)
        self._b_n, self._b_n_by_n = ciotti_bertin(n)
        self.light = torch.exp(-self._b_n * (self._power - 1)) * amp

    def slopes(self) -> tuple[Tensor, ...]:
        """Compute the derivatives by dx, dy, e1, e2, the radius's logarithm, and the index."""
        (dx, dy, e1, e2, n), (a, b), r2, power = self._given, self._ab, self._r2, self._power
        slope = self.light * power / r2 * (-0.5 * self._b_n / n)
        k, grow = 2 * self._norm * slope, 2 * slope * r2 * self._round
        by_power = self._b_n * power * r2.log() * (0.5 / n.square())
        return (
            k * ((1 - e1) * a - e2 * b),
            k * ((1 + e1) * b - e2 * a),
            k * (b * dy - a * dx) + grow * e1,
            -k * (a * dy + b * dx) + grow * e2,
            -2 * slope * r2,
            self.light * (by_power - self._b_n_by_n * (power - 1)),
        )


def ciotti_bertin(n: Tensor) -> tuple[Tensor, Tensor]:
    """Compute Sersic's b_n and its derivative by n: Ciotti & Bertin 1999 (A&A 352, 447), eq. 18."""
    c = CIOTTI_BERTIN
    b_n = 2 * n - 1 / 3 + c[0] / n + c[1] / n**2 + c[2] / n**3 + c[3] / n**4
    by_n = 2 - c[0] / n**2 - 2 * c[1] / n**3 - 3 * c[2] / n**4 - 4 * c[3] / n**5
    return b_n, by_n


def padded(params: Tensor) -> Tensor:
    """Return parameters (N, K) with the prior's means, or 0, in place of those that are missing."""
    means = [p.mean for p in PARAMETERS.values()]
    rest = params.new_tensor(means[params.shape[1] :]).expand(len(params), -1)
    return torch.cat([params, rest], 1)


def _separable(psf: Tensor, n: int) -> list[tuple[Tensor, Tensor]]:
    """Write a kernel as a sum of products of rows and columns, and each as matrices (n, n)."""
    u, s, v = torch.linalg.svd(psf / psf.sum())
    keep = int((s > 1e-4 * s[0]).sum())
    return [(_banded(u[:, k] * s[k], n), _banded(v[k], n)) for k in range(keep)]


def _banded(kernel: Tensor, n: int) -> Tensor:
    """Return the matrix that convolves n pixels; beyond the edge the last pixel is repeated."""
    reach = len(kernel) // 2
    rows = torch.arange(n, device=kernel.device)[:, None].expand(n, len(kernel))
    columns = rows + torch.arange(reach, -reach - 1, -1, device=kernel.device)
    matrix = kernel.new_zeros(n, n)
    where = (rows, columns.clamp(0, n - 1))
    return matrix.index_put_(where, kernel.expand(n, -1), accumulate=True)
