"""Fit smooth lenses to images of the common task; the residual is substructure and noise.

A damped Gauss-Newton fit finds the parameters of a smooth lens (`lensdist.sim.fit_model`) in a few
steps (Levenberg 1944, doi:10.1090/qam/10666; robust by Huber's weights, 1964,
doi:10.1214/aoms/1177703732). Gaussian priors hold those that an image says little about.

The fit has the nuisances that real lenses have: an elliptical power law with a centre of its own,
light of the lens, a source of any size and index, a point-spread function that is a bit wider or
has wings, and noise that is estimated from the image. What is not in the fit looks like
substructure to a network that was trained on residuals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lensdist.sim.families import Family
from lensdist.sim.fit_model import (
    COARSE,
    DTYPE,
    NAMES,
    PARAMETERS,
    SHAPE,
    SmoothLensModel,
    padded,
)
from lensdist.sim.fit_noise import calibrated, noise_of
from lensdist.sim.light import exact_matmul
from lensdist.sim.priors import sample
from lensdist.utils import rng

_BANK = 4_000  # lenses from which the nearest is the start
_THUMB = 15  # pixels a side of the thumbnails that are compared with them
_ROUND_STEPS, _STEPS = 3, 3
_CLIP = 3.0  # sigma beyond which a pixel counts less, because of substructure
# Images fitted together. On a CPU the derivatives of 16 images fit into its caches. The number is
# fixed, so that rounding, and with it the choice of steps, does not depend on the batch.
_TOGETHER = {"cpu": 16, "cuda": 256}


@dataclass(frozen=True)
class SmoothLens:
    """The smooth lenses nearest to images, and their residuals at half the resolution.

    Attributes:
        params: (N, P) their parameters, in the order of `fit_model.NAMES`.
        chi: (N, H/2, W/2) image - lens, in standard deviations of the noise. Where the noise of
            neighbours is correlated, means of 2x2 have the expected scatter, and pixels less.
        light: (N, H/2, W/2) the lensed source, in units of its brightness at its half-light radius.
        numbers: (N,) each, what describes an image and its fit.
    """

    params: Tensor
    chi: Tensor
    light: Tensor
    numbers: dict[str, Tensor]


class SmoothLensFit:
    """A fit of images (N, H, W) of a family with isothermal spheres, each independently.

    Args:
        family: the family of the images; its `main_lens` is round.
        device: the device to fit on.
        psf: see `SmoothLensModel`.
    """

    def __init__(self, family: Family, device: torch.device, psf: Tensor | None = None) -> None:
        assert not any(family.main_lens[1:3]), f"the lenses of {family.name} are not round"
        self._family, self._device = family, device
        self.model = SmoothLensModel(family, device, psf)
        low, high, mean, sigma = zip(*PARAMETERS.values(), strict=True)
        self._low, self._high, self._mean = (
            torch.tensor(v, dtype=DTYPE, device=device) for v in (low, high, mean)
        )
        self._weight = torch.tensor([s**-2 for s in sigma], dtype=DTYPE, device=device)
        with exact_matmul(device):
            self._bank, self._thumbs = self._draw_bank()

    def __call__(self, images: Tensor, noise: Tensor | None = None) -> SmoothLens:
        """Fit images (N, H, W), of any scale and offset.

        Args:
            images: the images.
            noise: (N, H, W) the standard deviation of their pixels; infinite where a pixel does not
                count. None: it is estimated from the images.
        """
        size = _TOGETHER.get(self._device.type, 256)
        parts: list[tuple[Tensor, ...]] = []
        with exact_matmul(self._device):
            for start in range(0, len(images), size):
                part = images[start : start + size].to(DTYPE)
                known = None if noise is None else noise[start : start + size].to(DTYPE)
                # The last batch is filled up with its first image, so that all have one shape.
                whole, known = (
                    None if v is None else torch.cat([v, v[:1].expand(size - len(v), -1, -1)])
                    for v in (part, known)
                )
                assert whole is not None
                parts.append(tuple(v[: len(part)] for v in self._fit(whole, known)))
        params, chi, light, numbers = (torch.cat(v).float() for v in zip(*parts, strict=True))
        return SmoothLens(params, chi, light, dict(zip(NUMBERS, numbers.unbind(1), strict=True)))

    def _fit(self, images: Tensor, known: Tensor | None) -> tuple[Tensor, ...]:
        data = F.avg_pool2d(images[:, None], COARSE)[:, 0]
        noise = noise_of(images, COARSE)
        if known is None:
            smooth = F.avg_pool2d(data[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
            variance = noise.variance(smooth)
        else:
            variance = F.avg_pool2d(known.square()[:, None], COARSE)[:, 0] / COARSE**2
        sigma = variance.sqrt()
        p = self._start(data)
        p, _ = self._descend(data, sigma, p, _ROUND_STEPS)
        p, maps = self._descend(data, sigma, p, _STEPS, self.model.bends(p))
        # From here on the model is drawn from every pixel; its slopes and the small corrections of
        # the PSF need not be.
        p = self._step(data, sigma, p, maps, *self.model.exact(p))
        source, lens_light = self.model.exact(p)
        flux, offset, width, wing, amount = p[:, SHAPE:, None, None].unbind(1)
        source = source + width * maps[:, 2] + wing * maps[:, 3]
        lens_light = amount * lens_light
        drawn = flux * (source + lens_light) + offset
        spread, spread_1 = torch.ones_like(flux), torch.ones_like(flux)
        if known is None:
            sigma = noise.variance(drawn).sqrt()
            spread, spread_1 = calibrated((data - drawn) / sigma, drawn)
            sigma = sigma * spread
        chi = (data - drawn) / sigma
        clump = self.model.clump(p, chi, sigma / flux)
        correlation = spread_1 / spread
        numbers = _numbers(p, chi, sigma, source, lens_light, drawn - offset, correlation, clump)
        return p, chi, source, torch.stack(numbers, 1)

    def _start(self, data: Tensor) -> Tensor:
        """Return the nearest lens of the bank, with the best flux and offset."""
        shape = self._bank[(_thumb(data) @ self._thumbs.T).argmax(1)]
        lens, pixels = self.model.source(shape, COARSE).flatten(1), data.flatten(1)
        centred = lens - lens.mean(1, keepdim=True)
        flux = (centred * pixels).sum(1) / centred.square().sum(1)
        p = padded(shape)
        p[:, SHAPE] = flux
        p[:, SHAPE + 1] = pixels.mean(1) - flux * lens.mean(1)
        return p

    def _descend(
        self,
        data: Tensor,
        sigma: Tensor,
        p: Tensor,
        steps: int,
        bends: list[tuple[Tensor, ...]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Take steps from `p`; undo a step where it made the fit worse.

        Returns:
            The parameters, and the model's maps there.
        """
        damp = data.new_full((len(data), 1, 1), 1e-2)
        cost = data.new_full((len(data),), math.inf)
        best: tuple[Tensor, ...] | None = None
        for step in range(steps + 1):
            maps = self.model.maps(p, bends)
            drawn = maps[:, :2].unbind(1)
            new_cost, *equations = self._equations(data, sigma, p, maps, *drawn)
            found = (p, *equations, maps)
            better = new_cost < cost
            best = found if best is None else _choose(better, found, best)
            cost = torch.where(better, new_cost, cost)
            damp = torch.where(better[:, None, None], damp * 0.2, damp * 8).clamp(1e-7, 1e4)
            if step < steps:
                p = self._moved(best[0], best[1], best[2], damp)
        assert best is not None
        return best[0], best[3]

    def _step(self, data: Tensor, sigma: Tensor, p: Tensor, maps: Tensor, *drawn: Tensor) -> Tensor:
        """Take one step from `p`, where the model is `drawn`."""
        _, curvature, gradient = self._equations(data, sigma, p, maps, *drawn)
        return self._moved(p, curvature, gradient, curvature.new_tensor(1e-4))

    def _moved(self, p: Tensor, curvature: Tensor, gradient: Tensor, damp: Tensor) -> Tensor:
        eye = torch.eye(len(self._low), dtype=DTYPE, device=self._device)
        damped = curvature + curvature * eye * damp + 1e-6 * eye
        p = p + torch.linalg.solve(damped, gradient)[:, :, 0]
        return p.clamp(self._low, self._high)

    def _equations(
        self, data: Tensor, sigma: Tensor, p: Tensor, maps: Tensor, source: Tensor, light: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return cost (N,), curvature (N, P, P) and gradient (N, P, 1), 0 for what is held."""
        flux, offset, width, wing, amount = p[:, SHAPE:, None, None].unbind(1)
        whole = source + width * maps[:, 2] + wing * maps[:, 3] + amount * light
        chi = ((data - flux * whole - offset) / sigma).flatten(1)
        linear = [
            whole,
            torch.ones_like(whole),
            *(flux * m for m in (maps[:, 2], maps[:, 3], light)),
        ]
        slopes = torch.cat([flux[:, None] * maps[:, 4:], torch.stack(linear, 1)], 1)
        slopes = (slopes / sigma[:, None]).flatten(2)
        weighted = slopes * (_CLIP / chi.abs().clamp_min(_CLIP))[:, None]
        cost = F.huber_loss(chi, torch.zeros_like(chi), reduction="none", delta=_CLIP).sum(1)
        off = p - self._mean
        cost = cost + 0.5 * (off.square() * self._weight).sum(1)
        n = len(self._low)
        free = torch.tensor([*range(slopes.shape[1] - 5), *range(SHAPE, n)], device=self._device)
        curvature = torch.diag_embed(self._weight.expand(len(p), n)).clone()
        gradient = -(off * self._weight)[:, :, None]
        curvature[:, free[:, None], free] += weighted @ slopes.transpose(1, 2)
        gradient[:, free] += weighted @ chi[:, :, None]
        if len(free) < n:  # what is held stays where it is
            held = torch.ones(n, dtype=torch.bool, device=self._device)
            held[free] = False
            gradient[:, held] = 0
        return cost, curvature, gradient

    def _draw_bank(self) -> tuple[Tensor, Tensor]:
        """Draw smooth lenses from the family's priors (K, 9), and their thumbnails."""
        numbers = torch.arange(_BANK, device=self._device)
        smooth = self._family.labels[:1]
        p = sample(self._family.name, rng.key(0, "smooth lenses"), numbers, classes=smooth)
        source = p["source_xy"].new_tensor([0.0, self._family.source_n]).expand(_BANK, 2)
        shape = [p["kwargs_main"][:, [0, 3, 4]], p["source_xy"], p["source_e1_e2"], source]
        bank = torch.cat(shape, 1)
        parts = torch.split(bank, 200)
        return bank, torch.cat([_thumb(self.model.source(part, _THUMBED)) for part in parts])


_THUMBED = 5  # pixels a side that are averaged for the thumbnails of the bank

NUMBERS = (
    "chi2", "signal_to_noise", "noise_correlation", "einstein_radius", "shear", "ellipticity",
    "off_centre", "slope", "lens_light", "psf_width", "psf_wing", "source_offset", "source_size",
    "source_index", "source_clump",
)  # fmt: skip
"""The numbers of `SmoothLens`."""


_LEAST_EXCESS = 100.0  # of chi squared, to name a clump's share in it: noise has less


def _numbers(
    p: Tensor,
    chi: Tensor,
    sigma: Tensor,
    source: Tensor,
    lens_light: Tensor,
    whole: Tensor,
    correlation: Tensor,
    clump: Tensor,
) -> list[Tensor]:
    """Return `NUMBERS`, (N,) each."""
    v = dict(zip(NAMES, p.unbind(1), strict=True))
    blocks, light, bright = (
        F.avg_pool2d(m[:, None], 2).flatten(1) for m in (chi, source, whole / sigma)
    )
    lit = light > 0.1 * light.amax(1, keepdim=True)
    chi2 = (4 * blocks.square() * lit).sum(1) / lit.sum(1).clamp_min(1)
    excess = (4 * blocks.square() - 1).sum(1)
    total = (source + lens_light).sum((1, 2))
    return [
        chi2,
        bright.quantile(0.9, 1),
        correlation[:, 0, 0],
        v["einstein_radius"],
        torch.hypot(v["shear1"], v["shear2"]),
        torch.hypot(v["lens_e1"], v["lens_e2"]),
        torch.hypot(v["lens_x"], v["lens_y"]),
        v["slope"] + 2,
        lens_light.sum((1, 2)) / total.clamp_min(1e-30),
        v["psf_width"],
        v["psf_wing"],
        torch.hypot(v["source_x"], v["source_y"]),
        v["source_size"],
        v["source_index"],
        clump / excess.clamp_min(_LEAST_EXCESS),
    ]


def _thumb(images: Tensor) -> Tensor:
    """Shrink images, subtract the mean and scale to length 1: (N, S, S) -> (N, 225)."""
    small = F.adaptive_avg_pool2d(images[:, None], _THUMB).flatten(1)
    return F.normalize(small - small.mean(1, keepdim=True))


def _choose(where: Tensor, yes: tuple[Tensor, ...], no: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(
        torch.where(where.view(-1, *[1] * (a.dim() - 1)), a, b)
        for a, b in zip(yes, no, strict=True)
    )
