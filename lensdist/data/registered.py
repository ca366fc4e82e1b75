"""Fit smooth lenses to images whose flux, offset and place are unknown.

A basis describes smooth lenses at one place. An image is moved to where the basis fits it best,
first by whole pixels, then by a fraction of one, and its flux and offset are those of the fit. So
what is left, in units of the fitted flux, is the same whatever the unit, the background and the
place of the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from lensdist.data.subpixel import TAPS, Spline, read, slopes
from lensdist.utils.errors import UserError

COARSE = 16
"""Components that find the place. With more, substructure moves it: by 1 pixel or more in 44 % of
noiseless `axion` images with 40 components, in 17 % with 16, by 2 in 4 % and none."""
FINE = 40
"""Components that find the fraction of a pixel. 16 leave twice as much of smooth lenses; with 100,
substructure moves images as with `COARSE`."""
_STEPS = 4  # of Gauss and Newton to the fraction of a pixel
_LEAST = 8  # pixels a side of a window
_RIDGE = 1e-9  # of the fit to good pixels, which may be fewer than the components
_FIRST = 4  # one image in so many makes the first components, which only find places
COLUMNS = ("fit_residual", "fit_distance", "fit_flux", "fit_shift_x", "fit_shift_y")
"""What `Registered.columns` measures."""


@dataclass(frozen=True)
class Fit:
    """What was fitted to images (B, C, H, W), in their windows of h * w pixels.

    Attributes:
        image: (B, C, H, W) float64, with bad pixels filled.
        pixels: (B, 1, h * w) int64, the window's pixels among the H * W, moved by whole ones.
        shift: (B, 2), how many pixels the image is lower, and further right, than the basis.
        fraction: (B, 2), how much of that is beyond the window's.
        flux: (B, 1, 1), the root of the sum of squares of the smooth part above its offset.
        coefficients: (B, K) of the basis, in units of the flux.
        smooth: (B, C, h * w), the smooth part with its offset.
        residual: (B, C, h * w), the image without it, in units of the flux.
    """

    image: Tensor
    pixels: Tensor
    shift: Tensor
    fraction: Tensor
    flux: Tensor
    coefficients: Tensor
    smooth: Tensor
    residual: Tensor


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
    _spline: Spline = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._spline = Spline(self.shape[1:])

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
            return self._fit(image, self._places(image))
        known = good.expand_as(x).flatten(2)
        image = torch.where(known, image, _median(image, known))
        corner = self._places(image)
        return self._fit(self._filled(image, known, self._pixels(corner)), corner)

    def fit_in_place(self, x: Tensor) -> Fit:
        """Fit images (B, C, H, W) that are at most a fraction of a pixel off the basis."""
        corner = torch.full((len(x), 2), self.reach, device=x.device)
        return self._fit(x.flatten(2).double(), corner)

    def with_residual(self, fit: Fit, residual: Tensor) -> Tensor:
        """Return the images (B, C, H, W) of a fit, with another residual (B, C, h * w)."""
        change = torch.zeros_like(fit.image).flatten(2)
        inside = fit.pixels.expand_as(residual)
        change = change.scatter(2, inside, (residual - fit.residual) * fit.flux)
        weights = self._spline.weights(change.view_as(fit.image))
        return fit.image + read(weights, -fit.fraction)

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

    def _pixels(self, corner: Tensor, extra: int = 0) -> Tensor:
        """Return the numbers (B, 1, …) of the pixels of windows whose first is `corner` (B, 2).

        `extra` makes windows and images larger.
        """
        (_, h, w), width = self._window, self.shape[2] + extra
        line, column = (torch.arange(n + extra, device=corner.device) for n in (h, w))
        lines = corner[:, 0, None, None] + line[:, None]
        return (lines * width + corner[:, 1, None, None] + column).flatten(1)[:, None]

    def _places(self, image: Tensor) -> Tensor:
        """Return where the windows of images (B, C, H * W) begin, (B, 2)."""
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
        return torch.stack([best // len(moves), best % len(moves)], 1)

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

    def _fraction(self, weights: Tensor) -> Tensor:
        """Return the fractions of a pixel (B, 2) by which windows are off the basis."""
        rows = self.rows[:FINE].to(weights)
        fraction = weights.new_zeros(weights.shape[0], 2)  # len(weights) would fix the batch

        def unexplained(values: Tensor) -> Tensor:
            flat = (values - values.mean((2, 3), keepdim=True)).flatten(1)
            return flat - (flat @ rows.T) @ rows

        for _ in range(_STEPS):
            left, a, b = (unexplained(part) for part in slopes(weights, fraction))
            aa, ab, bb = ((x * y).sum(1) for x, y in ((a, a), (a, b), (b, b)))
            al, bl = (a * left).sum(1), (b * left).sum(1)
            most = (aa * bb).clamp_min(1e-30)
            step = torch.stack([bb * al - ab * bl, aa * bl - ab * al], 1)
            step = step / torch.maximum(aa * bb - ab * ab, 1e-3 * most)[:, None]
            fraction = (fraction - step.clamp(-0.5, 0.5)).clamp(-1, 1)
        return fraction

    def _fit(self, image: Tensor, corner: Tensor) -> Fit:
        (bands, h, w), wide = self._window, 2 * TAPS
        whole = image.view(-1, *self.shape)
        inside = self._pixels(corner, wide).expand(-1, bands, -1)
        weights = self._spline.weights(whole).flatten(2).gather(2, inside)
        weights = weights.view(-1, bands, h + wide, w + wide)
        fraction = self._fraction(weights)
        values = read(weights, fraction).flatten(2)
        offset = values.mean(2, keepdim=True)
        centred = (values - offset).flatten(1)
        rows = self.rows.to(image)
        told = centred @ rows.T
        smooth = (told @ rows).view_as(values)
        # A blank image has no flux: what rounding leaves of it must stay finite.
        least = 1e-12 * offset.abs().amax((1, 2)) + 1e-30
        flux = torch.maximum(told.square().sum(1).sqrt(), least)[:, None]
        residual = (values - offset - smooth) / flux[:, None]
        shift, pixels = corner - self.reach + fraction, self._pixels(corner)
        told, flux = told / flux, flux[:, None]
        return Fit(whole, pixels, shift, fraction, flux, told, smooth + offset, residual)


def registered(
    images: Tensor, reach: int, components: int, made: str, turned: bool = False
) -> Registered:
    """Make a basis of images (N, C, H, W), which count alike whatever their flux.

    `turned` adds each image turned by 180 degrees.
    They make components as they are, and again at the places where those find them.

    Raises:
        UserError: shifts of so many pixels would leave no window.
    """
    size = min(images.shape[-2:])
    if size - 2 * reach < _LEAST:
        raise UserError(
            f"preprocess.shift: {reach} leaves {size - 2 * reach} of {size} pixels; at least "
            f"{_LEAST} are needed: set at most {max(0, (size - _LEAST) // 2)}"
        )
    bands, height, width = images.shape[1:]
    some, shape = images[::_FIRST], (bands, height, width)
    values = _inner(some, reach).flatten(2).double()
    basis = _of(values, shape, reach, components, made, turned)
    for again in (some, images):
        fits = [basis.fit_in_place(part) for part in torch.split(again, 100)]
        values = torch.cat([fit.smooth + fit.residual * fit.flux for fit in fits])
        basis = _of(values, shape, reach, components, made, turned)
    return basis


def _of(
    values: Tensor,
    shape: tuple[int, int, int],
    reach: int,
    components: int,
    made: str,
    turned: bool,
) -> Registered:
    """Make a basis of the windows (N, C, h * w) of images of a shape (C, H, W)."""
    centred = values - values.mean(2, keepdim=True)
    centred = centred / centred.square().sum((1, 2), keepdim=True).sqrt().clamp_min(1e-30)
    flat, parts = centred.flatten(1), [centred.flatten(1)]
    if turned:  # what stays and what changes sign are apart, which is cheaper than all together
        other = centred.flip(2).flatten(1)
        parts = [flat + other, flat - other]
        flat = torch.cat([flat, other])
    values, rows = (torch.cat(v) for v in zip(*map(_principal, parts), strict=True))
    k = min(components, int((values > values.max() * 1e-12).sum()))
    rows = rows[values.topk(k).indices].float()
    told = flat @ rows.double().T
    typical = told[:, :COARSE] / told.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return Registered(rows, typical.float(), shape, reach, made=made)


def _principal(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squares (N,) along the principal directions of rows (N, P), and those (N, P)."""
    # By the N x N products, which is far cheaper than decomposing an N x P matrix.
    values, vectors = torch.linalg.eigh(flat @ flat.T)
    return values, F.normalize(vectors.T @ flat)


def _inner(images: Tensor, reach: int) -> Tensor:
    height, width = images.shape[-2:]
    return images[..., reach : height - reach, reach : width - reach]


def _median(image: Tensor, known: Tensor) -> Tensor:
    """Return the median of each band's good pixels, (B, C, 1); 0 where there is none."""
    nan = torch.full((), torch.nan, dtype=image.dtype, device=image.device)
    return torch.where(known, image, nan).nanmedian(2, keepdim=True).values.nan_to_num(0.0)
