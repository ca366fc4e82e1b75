"""Fit smooth lenses to images whose flux, offset and place are unknown.

A basis describes smooth lenses at one place. An image is moved by whole pixels to where the basis
fits it best, and its flux and offset are those of the fit. So what is left, in units of the fitted
flux, is the same whatever the unit, the background and the place of the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lensdist.utils.errors import UserError

COARSE = 16
"""Components that find the place. With more, substructure moves it: by 1 pixel or more in 44 % of
noiseless `axion` images with 40 components, in 17 % with 16, by 2 in 4 % and none."""
_LEAST = 8  # pixels a side of a window
_RIDGE = 1e-9  # of the fit to good pixels, which may be fewer than the components
IMAGES = 1000
"""Most images that the components are made of: more would change little, and take longer."""
COLUMNS = ("fit_residual", "fit_distance", "fit_flux", "fit_shift_x", "fit_shift_y")
"""What `Registered.columns` measures."""


@dataclass(frozen=True)
class Fit:
    """What was fitted to images (B, C, H, W), in their windows of h * w pixels.

    Attributes:
        pixels: (B, 1, h * w) int64, the window's pixels among the H * W.
        shift: (B, 2) int64, how many pixels the image is lower, and further right, than the basis.
        flux: (B, 1, 1), the root of the sum of squares of the smooth part above its offset.
        coefficients: (B, K) of the basis, in units of the flux.
        smooth: (B, C, h * w), the smooth part with its offset.
        residual: (B, C, h * w), the image without it, in units of the flux.
    """

    pixels: Tensor
    shift: Tensor
    flux: Tensor
    coefficients: Tensor
    smooth: Tensor
    residual: Tensor

    def placed(self, values: Tensor, raw: Tensor) -> Tensor:
        """Return images `raw` (B, C, H, W) with `values` (B, C, h * w) in their windows."""
        inside = self.pixels.expand_as(values)
        return raw.flatten(2).scatter(2, inside, values.to(raw.dtype)).view_as(raw)


@dataclass
class Registered:
    """A basis of smooth images at one place.

    Attributes:
        rows: (K, C * h * w) float32, orthonormal, each band without mean; h = H - 2 `reach`.
        typical: (N, up to `COARSE`) the first coefficients of smooth lenses, in units of the flux.
        shape: (C, H, W).
        reach: the largest shift, pixels, which is also the margin around a window.
        scale: root mean square of the residual of training images, per pixel in units of the flux.
        made: what the basis was made of, in words.
    """

    rows: Tensor
    typical: Tensor
    shape: tuple[int, int, int]
    reach: int
    scale: float = 1.0
    made: str = ""

    def fits(self, shape: tuple[int, int, int]) -> bool:
        """Return whether the basis is of images of this shape (C, H, W)."""
        pixels = math.prod(self._window) if min(self._window) > 0 else -1
        typical = self.typical.shape[1:] == (min(COARSE, len(self.rows)),)
        return self.shape == shape and self.rows.shape[1:] == (pixels,) and typical

    def fit(self, x: Tensor, good: Tensor | None = None) -> Fit:
        """Fit images (B, C, H, W), each independently of the others.

        Args:
            x: the images.
            good: bool, (B, 1 or C, H, W); other pixels do not count.
        """
        # In float64: under autocast or TF32 rounding would be larger than the residual.
        image = x.flatten(2).double()
        if good is None:
            return self._fit(image, *self._places(image))
        known = good.expand_as(x).flatten(2)
        image = torch.where(known, image, _median(image, known))
        pixels, shift = self._places(image)
        return self._fit(self._filled(image, known, pixels), pixels, shift)

    def columns(self, fit: Fit) -> dict[str, Tensor]:
        """Return numbers (B,) that tell images unlike smooth lenses and those of the training set.

        They are the residual's part of the flux, the distance of the smooth part from the nearest
        typical lens in units of the flux, the flux, and the shift.
        """
        mine = fit.coefficients[:, : self.typical.shape[1]]
        square = mine.square().sum(1, keepdim=True)
        typical = self.typical.to(mine)
        distance = (square + typical.square().sum(1) - 2 * mine @ typical.T).amin(1).clamp_min(0)
        values = (
            fit.residual.square().sum((1, 2)).sqrt(),
            distance.sqrt(),
            fit.flux[:, 0, 0],
            fit.shift[:, 1],
            fit.shift[:, 0],
        )
        return {name: value.float() for name, value in zip(COLUMNS, values, strict=True)}

    def framed(self, values: Tensor) -> Tensor:
        """Return windows (B, C, h * w) as images (B, C, H, W) with a margin of zeros."""
        bands, height, width = self._window
        return F.pad(values.view(-1, bands, height, width), [self.reach] * 4)

    def inner(self, images: Tensor) -> Tensor:
        """Return the middle of images (B, C, H, W), without the margin: (B, C, h * w)."""
        return _inner(images, self.reach).flatten(2)

    @property
    def _window(self) -> tuple[int, int, int]:
        bands, height, width = self.shape
        return bands, height - 2 * self.reach, width - 2 * self.reach

    def _places(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return `pixels` and `shift` of a `Fit` for images (B, C, H * W)."""
        (bands, h, w), (_, height, width) = self._window, self.shape
        moves = torch.arange(2 * self.reach + 1, device=image.device)
        # The product of a window with a row is that of whole lines with the row, padded.
        coarse = self.rows[:COARSE].to(image).view(-1, bands, h, w)
        padded = torch.cat([F.pad(coarse, (j, 2 * self.reach - j)) for j in range(len(moves))])
        centred = (image - image.mean(2, keepdim=True)).view(-1, bands, height, width)
        lines = [centred[:, :, i : i + h].flatten(1) for i in range(len(moves))]
        told = torch.stack([some @ padded.flatten(1).T for some in lines], 1)
        told = told.view(-1, len(moves), len(moves), len(coarse)).square().sum(3)
        # Box sums as products, since ONNX runtimes pool no float64.
        lower, across = (
            torch.ones(len(moves), n).to(image).tril(n - len(moves)).triu() for n in (height, width)
        )
        mean, square = (lower @ a @ across.T / (h * w) for a in (centred, centred.square()))
        left = (h * w * (square - mean.square())).sum(1) - told
        best = left.flatten(1).argmin(1)
        down, right = best // len(moves), best % len(moves)
        line, column = (torch.arange(n, device=image.device) for n in (h, w))
        rows = (down[:, None, None] + line[:, None]) * width
        pixels = (rows + right[:, None, None] + column).flatten(1)
        return pixels[:, None], torch.stack([down, right], 1) - self.reach

    def _filled(self, image: Tensor, known: Tensor, pixels: Tensor) -> Tensor:
        """Return images (B, C, H * W) with bad pixels filled by the smooth part of the others."""
        bands = image.shape[1]
        inside = pixels.expand(-1, bands, -1)
        values, good = image.gather(2, inside).flatten(1), known.gather(2, inside).flatten(1)
        offsets = torch.eye(bands).to(image).repeat_interleave(inside.shape[2], 1)
        rows = torch.cat([self.rows.to(image), offsets / math.sqrt(inside.shape[2])])
        for i in (~good).any(1).nonzero()[:, 0].tolist():
            own = rows[:, good[i]]
            square = own @ own.T
            square.diagonal().add_(_RIDGE)
            smooth = torch.linalg.solve(square, own @ values[i, good[i]]) @ rows
            values[i] = torch.where(good[i], values[i], smooth)
        return image.scatter(2, inside, values.view_as(inside))

    def _fit(self, image: Tensor, pixels: Tensor, shift: Tensor) -> Fit:
        values = image.gather(2, pixels.expand(-1, image.shape[1], -1))
        offset = values.mean(2, keepdim=True)
        centred = (values - offset).flatten(1)
        rows = self.rows.to(image)
        told = centred @ rows.T
        smooth = (told @ rows).view_as(values)
        # A blank image has no flux: what rounding leaves of it must stay finite.
        least = 1e-12 * offset.abs().amax((1, 2)) + 1e-30
        flux = torch.maximum(told.square().sum(1).sqrt(), least)[:, None]
        residual = (values - offset - smooth) / flux[:, None]
        return Fit(pixels, shift, flux[:, None], told / flux, smooth + offset, residual)


def registered(images: Tensor, reach: int, components: int, made: str) -> Registered:
    """Make a basis of images (N, C, H, W), which count alike whatever their flux.

    All images are typical, and at most `IMAGES` of them make the components.

    Raises:
        UserError: shifts of so many pixels would leave no window.
    """
    size = min(images.shape[-2:])
    if size - 2 * reach < _LEAST:
        raise UserError(
            f"preprocess.shift: {reach} leaves {size - 2 * reach} of {size} pixels; at least "
            f"{_LEAST} are needed: set at most {max(0, (size - _LEAST) // 2)}"
        )
    flat = _flat(images, reach)
    some = flat[:: -(-len(flat) // IMAGES)]
    # By the N x N products, which is far cheaper than decomposing an N x P matrix.
    values, vectors = torch.linalg.eigh(some @ some.T)
    k = min(components, int((values > values[-1] * 1e-12).sum()))
    largest_first = vectors[:, -k:].flip(1)
    rows = torch.linalg.qr((largest_first.T @ some).T).Q.T.float().contiguous()
    told = flat @ rows.double().T
    typical = told[:, :COARSE] / told.norm(dim=1, keepdim=True).clamp_min(1e-30)
    bands, height, width = images.shape[1:]
    return Registered(rows, typical.float(), (bands, height, width), reach, made=made)


def _flat(images: Tensor, reach: int) -> Tensor:
    """Return the middle of images (N, C, H, W) without offset and of flux 1: (N, C * h * w)."""
    inner = _inner(images, reach).flatten(2).double()
    flat = (inner - inner.mean(2, keepdim=True)).flatten(1)
    norm: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return flat / norm.clamp_min(1e-30)


def _inner(images: Tensor, reach: int) -> Tensor:
    height, width = images.shape[-2:]
    return images[..., reach : height - reach, reach : width - reach]


def _median(image: Tensor, known: Tensor) -> Tensor:
    """Return the median of each band's good pixels, (B, C, 1); 0 where there is none."""
    nan = torch.full((), torch.nan, dtype=image.dtype, device=image.device)
    return torch.where(known, image, nan).nanmedian(2, keepdim=True).values.nan_to_num(0.0)
