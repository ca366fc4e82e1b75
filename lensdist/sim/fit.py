"""Fit smooth lenses to images of the common task; the residual is substructure and noise.

The model is a singular isothermal sphere with external shear, and an elliptical Sersic source. A
damped Gauss-Newton fit finds its nine parameters in a few steps (Levenberg 1944,
doi:10.1090/qam/10666; robust by Huber's weights, 1964, doi:10.1214/aoms/1177703732). Three more
parameters are linear: flux and offset, because images are stored between 0 and 1, and the first
order in the width of the point-spread function, so that other optics leave no rings.

The fit models the noise, but not substructure. It includes the size and index of the source,
although the family has only one of each: with them fixed, a network that was trained on residuals
took every source of another index (1.2 for 1.5) for substructure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lensdist.sim.families import CIOTTI_BERTIN, FWHM_PER_SIGMA, Family
from lensdist.sim.light import blur_matrix, exact_matmul
from lensdist.sim.noise import COMMON_EXPOSURE, COMMON_SKY
from lensdist.sim.priors import sample
from lensdist.utils import rng

# Bounds, well beyond the priors, of theta_E, gamma1, gamma2; of the source x, y, e1, e2, the
# logarithm of its radius in units of the family's, and its Sersic index.
_LOW = (0.9, -0.45, -0.45, -0.7, -0.7, -0.6, -0.6, -0.7, 0.6)
_HIGH = (1.7, 0.45, 0.45, 0.7, 0.7, 0.6, 0.6, 0.7, 4.0)
_SHAPE = len(_LOW)

# An image's position in the batch changes the last bits of products. The residual is a small
# difference in units of the noise, so in float32 this would be visible (2e-5 in the logits).
_DTYPE = torch.float64
_BANK = 4_000  # lenses from which the nearest is the start
_THUMB = 15  # pixels a side of the thumbnails that are compared with them
_COARSE = 2  # pixels a side that are averaged for the first steps
_STEPS = {_COARSE: 3, 1: 1}
_CLIP = 3.0  # sigma beyond which a pixel counts less, because of substructure
_WIDER = 0.05  # step of the numerical derivative by the logarithm of the PSF's width
# Images fitted together. On a CPU the derivatives of 16 images fit into its caches. The number is
# fixed, so that rounding, and with it the choice of steps, does not depend on the batch.
_TOGETHER = {"cpu": 16, "cuda": 256}


@dataclass(frozen=True)
class SmoothLens:
    """The smooth lenses nearest to images, and their residuals.

    Attributes:
        params: (N, 9) theta_E, gamma1, gamma2; of the source x, y (arcsec), e1, e2, the logarithm
            of its radius over the family's, and its Sersic index.
        chi: (N, H, W) image - lens, in standard deviations of the noise.
        light: (N, H, W) the lens, in units of the source's brightness at its half-light radius.
    """

    params: Tensor
    chi: Tensor
    light: Tensor


class SmoothLensFit:
    """A fit of images (N, H, W) of a family with isothermal spheres, each independently.

    Args:
        family: the family of the images; its `main_lens` is round.
        device: the device to fit on.
    """

    def __init__(self, family: Family, device: torch.device) -> None:
        assert not any(family.main_lens[1:3]), f"the lenses of {family.name} are not round"
        self._family, self._device = family, device
        self._low, self._high = (
            torch.tensor(v, dtype=_DTYPE, device=device) for v in (_LOW, _HIGH)
        )
        self._grids = {binning: self._grid(binning) for binning in _STEPS}
        with exact_matmul(device):
            self._bank, self._thumbs = self._draw_bank()

    def __call__(self, images: Tensor) -> SmoothLens:
        """Fit images (N, H, W), of any scale and offset."""
        size = _TOGETHER.get(self._device.type, 256)
        parts = []
        with exact_matmul(self._device):
            for part in torch.split(images.to(_DTYPE), size):
                # The last batch is filled up with its first image, so that all have one shape.
                whole = torch.cat([part, part[:1].expand(size - len(part), -1, -1)])
                parts.append([value[: len(part)] for value in self._fit(whole)])
        params, chi, light = (torch.cat(values).float() for values in zip(*parts, strict=True))
        return SmoothLens(params[:, :_SHAPE], chi, light)

    def _fit(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        coarse = F.avg_pool2d(images[:, None], _COARSE)[:, 0]
        params = self._bank[(_thumb(coarse) @ self._thumbs.T).argmax(1)]
        params, *_ = self._descend(coarse, self._scaled(coarse, params), _COARSE)
        return self._descend(images, params, 1)

    def _scaled(self, images: Tensor, shape: Tensor) -> Tensor:
        """Add the best flux and offset to the shapes (N, 9), and no change of width: (N, 12)."""
        lens, data = self._draw(shape, _COARSE, slopes=False)[:, 0], images.flatten(1)
        centred = lens - lens.mean(1, keepdim=True)
        flux = (centred * data).sum(1, keepdim=True) / centred.square().sum(1, keepdim=True)
        offset = data.mean(1, keepdim=True) - flux * lens.mean(1, keepdim=True)
        return torch.cat([shape, flux, offset, torch.zeros_like(flux)], 1)

    def _descend(
        self, images: Tensor, params: Tensor, binning: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take steps from `params` (N, 12); undo a step where it made the fit worse."""
        data = images.flatten(1)
        damp = data.new_full((len(data), 1, 1), 1e-2)
        cost = data.new_full((len(data),), math.inf)
        eye = torch.eye(params.shape[1], dtype=data.dtype, device=self._device)
        best: tuple[Tensor, ...] | None = None
        for step in range(_STEPS[binning] + 1):
            maps = self._draw(params[:, :_SHAPE], binning)
            lens, by_shape, by_width = maps[:, 0], maps[:, 1:-1], maps[:, -1]
            flux, offset, width = params[:, _SHAPE:].unsqueeze(2).unbind(1)
            light = lens + width * by_width
            noise = (lens.clamp_min(0) + COMMON_SKY) / COMMON_EXPOSURE
            # A blank image has no flux and no noise: its residual is 0.
            sigma = flux.abs().clamp_min(1e-12) * noise.sqrt() / binning
            chi = (data - flux * light - offset) / sigma
            loss = F.huber_loss(chi, torch.zeros_like(chi), reduction="none", delta=_CLIP)
            new_cost = loss.mean(1) + sigma.log().mean(1)
            slopes = torch.cat(
                [
                    flux[:, :, None] * by_shape,
                    light[:, None],
                    torch.ones_like(light)[:, None],
                    (flux * by_width)[:, None],
                ],
                1,
            )
            slopes = slopes / sigma[:, None]
            weight = _CLIP / chi.abs().clamp_min(_CLIP)
            curvature = (slopes * weight[:, None]) @ slopes.transpose(1, 2)
            gradient = slopes @ (weight * chi)[:, :, None]
            found = (params, curvature, gradient, chi, light)
            better = new_cost < cost
            best = found if best is None else _choose(better, found, best)
            cost = torch.where(better, new_cost, cost)
            damp = torch.where(better[:, None, None], damp * 0.2, damp * 8).clamp(1e-7, 1e4)
            params, curvature, gradient = best[:3]
            if step < _STEPS[binning]:
                damped = curvature + curvature * eye * damp + 1e-6 * eye
                params = params + torch.linalg.solve(damped, gradient)[:, :, 0]
                shape = params[:, :_SHAPE].clamp(self._low, self._high)
                params = torch.cat([shape, params[:, _SHAPE:]], 1)
        assert best is not None
        return best[0], best[3].view_as(images), best[4].view_as(images)

    def _grid(self, binning: int) -> tuple[Tensor, ...]:
        """Return x, y and radius of pixels, and three blur matrices.

        The first has the PSF's width; the difference of the others is the derivative by its
        logarithm.
        """
        family = self._family
        n, scale = family.n_pix // binning, family.pixel_scale * binning
        x = (torch.arange(n, dtype=_DTYPE, device=self._device) - (n - 1) / 2) * scale
        y = x.flip(0) if family.y_up else x
        x, y = x.expand(n, n), y[:, None].expand(n, n)
        # Averaging pixels also blurs: a box of `binning` pixels has this variance.
        box = FWHM_PER_SIGMA * family.pixel_scale * math.sqrt((binning**2 - 1) / 12)
        blurs = [
            blur_matrix(
                n, math.hypot(family.psf_fwhm * factor, box) / scale, 4.0, _DTYPE, self._device
)
            for factor in (1.0, math.exp(_WIDER), math.exp(-_WIDER))
        ]  # fmt: skip
        return x, y, (x * x + y * y).clamp_min(1e-10).sqrt(), *blurs

    def _draw(self, params: Tensor, binning: int, *, slopes: bool = True) -> Tensor:
        """Draw lenses, their derivatives by the nine parameters and by the logarithm of PSF width.

        It is `raytrace.render` without substructure, with its derivatives by hand.

        Returns:
            (N, 11, H * W); without slopes (N, 1, H * W).
        """
        family = self._family
        x, y, r, blur, wide, narrow = self._grids[binning]
        theta, g1, g2, sx, sy, e1, e2, size, n = (p[:, None, None] for p in params.unbind(1))
        dx = x - theta * x / r - g1 * x - g2 * y - sx
        dy = y - theta * y / r - g2 * x + g1 * y - sy
        round_ = 1 / (1 - e1 * e1 - e2 * e2)
        norm = round_ / (family.source_radius * size.exp()).square()
        a, b = (1 - e1) * dx - e2 * dy, (1 + e1) * dy - e2 * dx
        r2 = ((a * a + b * b) * norm).clamp_min(1e-7)
        power = r2.pow(0.5 / n)
        b_n, b_n_by_n = _ciotti_bertin(n)
        light = torch.exp(-b_n * (power - 1)) * family.source_amp
        if not slopes:
            return (blur @ light @ blur.T).flatten(1)[:, None]
        slope = light * power / r2 * (-0.5 * b_n / n)
        k = 2 * norm * slope
        lx, ly = k * ((1 - e1) * a - e2 * b), k * ((1 + e1) * b - e2 * a)
        grow = 2 * slope * r2 * round_
        by_n = light * (b_n * power * r2.log() * (0.5 / n.square()) - b_n_by_n * (power - 1))
        maps = [
            light, -(x * lx + y * ly) / r, y * ly - x * lx, -(y * lx + x * ly), -lx, -ly,
            k * (b * dy - a * dx) + grow * e1, -k * (a * dy + b * dx) + grow * e2,
            -2 * slope * r2, by_n,
        ]  # fmt: skip
        blurred = blur @ (torch.stack(maps, 1) @ blur.T)
        by_width = (wide @ light @ wide.T - narrow @ light @ narrow.T) / (2 * _WIDER)
        return torch.cat([blurred, by_width[:, None]], 1).flatten(2)

    def _draw_bank(self) -> tuple[Tensor, Tensor]:
        """Draw smooth lenses from the family's priors (K, 9), and their thumbnails."""
        numbers = torch.arange(_BANK, device=self._device)
        smooth = self._family.labels[:1]
        p = sample(self._family.name, rng.key(0, "smooth lenses"), numbers, classes=smooth)
        source = p["source_xy"].new_tensor([0.0, self._family.source_n]).expand(_BANK, 2)
        shape = [p["kwargs_main"][:, [0, 3, 4]], p["source_xy"], p["source_e1_e2"], source]
        bank = torch.cat(shape, 1)
        side = self._family.n_pix // _COARSE
        thumbs = [
            _thumb(self._draw(part, _COARSE, slopes=False).view(-1, side, side))
            for part in torch.split(bank, 100)
        ]
        return bank, torch.cat(thumbs)


def _ciotti_bertin(n: Tensor) -> tuple[Tensor, Tensor]:
    """Compute Sersic's b_n and its derivative by n: Ciotti & Bertin 1999 (A&A 352, 447), eq. 18."""
    c = CIOTTI_BERTIN
    b_n = 2 * n - 1 / 3 + c[0] / n + c[1] / n**2 + c[2] / n**3 + c[3] / n**4
    by_n = 2 - c[0] / n**2 - 2 * c[1] / n**3 - 3 * c[2] / n**4 - 4 * c[3] / n**5
    return b_n, by_n


def _thumb(images: Tensor) -> Tensor:
    """Shrink images, subtract the mean and scale to length 1: (N, S, S) -> (N, 225)."""
    small = F.adaptive_avg_pool2d(images[:, None], _THUMB).flatten(1)
    return F.normalize(small - small.mean(1, keepdim=True))


def _choose(where: Tensor, yes: tuple[Tensor, ...], no: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(
        torch.where(where.view(-1, *[1] * (a.dim() - 1)), a, b)
        for a, b in zip(yes, no, strict=True)
    )
