"""Crop, pad and resample an image with its maps: mixed sizes and scales to one (torch-free).

Pixels are counted from 0 and their centres have whole coordinates, as in `astropy.wcs` with origin
0. Functions on arrays work on the last two axes, (..., H, W).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lensdist.data.reading.raw import MAX_BYTES, Array, BadFile, Nan, Raw
from lensdist.utils.errors import UserError

Size = tuple[int, int]
"""Height and width, pixels."""
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Cut:
    """What to do to images of other sizes and pixel scales: first resample, then crop, then pad."""

    crop: Size | None = None
    """Keep so many pixels around the centre."""
    pad: Size | None = None
    """Add bad pixels of value 0 around images that are smaller. Without it, an image that does not
    hold what `crop` keeps is refused."""
    scale: float | None = None
    """Pixel scale after resampling, arcsec."""
    centre: Literal["image", "brightest", "catalogue"] | Point = "image"
    """The middle of the image, its brightest good pixel (of the sum of bands), or RA and Dec,
    degrees; `catalogue` stands for those of each image, which the caller puts here."""
    scale_before: float | None = None
    """Pixel scale of images whose header has none, arcsec."""

    def __str__(self) -> str:
        """Return the words for it, as the options of a command line."""
        centre = self.centre if isinstance(self.centre, str) else "{},{}".format(*self.centre)
        said = {
            "resample": self.scale and f"{self.scale:g}",
            "crop": self.crop and "x".join(map(str, self.crop)),
            "pad": self.pad and "x".join(map(str, self.pad)),
            "centre": None if centre == "image" else centre,
        }
        return " ".join(f"--{name} {value}" for name, value in said.items() if value)


def asked(
    crop: Size | None, pad: Size | None, scale: float | None, centre: Any, before: float | None
) -> Cut | None:
    """Return what options ask for; None: nothing.

    Raises:
        UserError: a centre is given, and nothing to cut around it.
    """
    if centre != "image" and crop is None:
        raise UserError("--centre says what --crop keeps: give --crop N")
    return Cut(crop, pad, scale, centre, before) if scale or crop or pad else None


def window(array: Array, corner: Size, size: Size, fill: float = 0) -> Array:
    """Return the pixels from `corner` on; those outside of the array are `fill`.

    Args:
        array: (..., H, W).
        corner: row and column of the first pixel, which may lie outside.
        size: height and width of the result.
        fill: the value of pixels that the array does not have.
    """
    found = np.full((*array.shape[:-2], *size), fill, array.dtype)
    to, of = [], []
    for start, length, there in zip(corner, size, array.shape[-2:], strict=True):
        first, last = max(start, 0), min(start + length, there)
        of.append(slice(first, max(first, last)))
        to.append(slice(first - start, max(first, last) - start))
    found[..., to[0], to[1]] = array[..., of[0], of[1]]
    return found


def corner_of(size: Size, centre: Point) -> Size:
    """Return the first pixel of a window whose middle is nearest to `centre` (row, column)."""
    # 1e-6: a WCS gives the middle of a pixel to rounding only.
    top, left = (math.floor(c - n / 2 + 1 + 1e-6) for c, n in zip(centre, size, strict=True))
    return top, left


def resampled(array: Array, ratio: float, power: int = 1, size: Size | None = None) -> Array:
    """Add up what each new pixel covers of the old ones; flux is kept.

    Args:
        array: (..., H, W).
        ratio: side of a new pixel, in old pixels. The middle of the image stays in the middle.
        power: 2 for variances: of a sum of parts, each counts by its square.
        size: of the result; default: the whole pixels that fit, floor(H / ratio) and so on.

    Returns:
        (..., height, width) float64.

    Raises:
        BadFile: that has no pixel, or far too many.
    """
    old = array.shape[-2:]
    height, width = size or tuple(math.floor(n / ratio + 1e-6) for n in old)
    if not (height and width) or 4 * height * width > MAX_BYTES:
        raise BadFile(f"its {old[0]}x{old[1]} pixels resampled are {height}x{width}")
    wide = _along(array.astype(np.float64), ratio, width, power)
    return _along(wide.swapaxes(-1, -2), ratio, height, power).swapaxes(-1, -2)


def _along(array: Array, ratio: float, new: int, power: int) -> Array:
    """Resample the last axis to `new` pixels."""
    n = array.shape[-1]
    edges = n / 2 + (np.arange(new + 1) - new / 2) * ratio
    low, high = edges[:-1], edges[1:]
    total = np.zeros((*array.shape[:-1], new))
    for k in range(math.ceil(ratio) + 1):
        old = np.floor(low).astype(int) + k
        share = np.clip(np.minimum(high, old + 1) - np.maximum(low, old), 0, 1) ** power
        total += array[..., np.clip(old, 0, n - 1)] * np.where((old >= 0) & (old < n), share, 0)
    return total


def resized(raw: Raw, cut: Cut, nan: Nan | None = None) -> Raw:
    """Resample, crop and pad an image of (..., H, W) and the maps that belong to it.

    Weights stay inverse variances, of independent pixels. A new pixel is bad where any old one that
    it covers is.

    Args:
        raw: the image and its maps; a map serves all bands, or has the image's shape.
        cut: see `Cut`.
        nan: see `readers.Choice`.

    Raises:
        BadFile: the header lacks the pixel scale or the WCS that `cut` needs, or the image does
            not hold what is to be kept.
    """
    bad = None if raw.badpix is None else np.asarray(raw.badpix != 0)
    if (nan or ("mask" if raw.blank else "refuse")) == "mask" and raw.image.dtype.kind == "f":
        empty = np.isnan(raw.image)
        bad = (empty if bad is None else empty | bad) if empty.any() else bad
    if bad is not None:
        raw = replace(raw, badpix=bad, image=np.where(bad, 0, raw.image))
    middle = np.array([(n - 1) / 2 for n in raw.image.shape[-2:]])
    centre = middle if cut.centre == "image" else _centre(raw, cut.centre)
    ratio = 1.0
    if cut.scale is not None:
        raw, ratio = _to_scale(raw, cut.scale, cut.scale_before)
    height, width = raw.image.shape[-2:]
    new_middle = np.array([(height - 1) / 2, (width - 1) / 2])
    at = (centre - middle) / ratio + new_middle
    size = _size((height, width), cut)
    corner = corner_of(size, (float(at[0]), float(at[1])))
    outside = min(*corner, height - corner[0] - size[0], width - corner[1] - size[1]) < 0
    if outside and cut.pad is None:
        raise BadFile(
            f"its {height}x{width} pixels do not hold {size[0]}x{size[1]} around "
            f"{'its middle' if cut.centre == 'image' else 'the centre'}; --pad adds bad pixels"
        )
    kept = np.array(corner) + (np.array(size) - 1) / 2  # the new middle
    raw = replace(raw, position=_on_sky(raw, (kept - new_middle) * ratio + middle))
    if (height, width) == size and corner == (0, 0):
        return raw
    bad = raw.badpix
    if outside:
        bad = np.zeros((height, width), bool) if bad is None else bad
    return replace(
        raw,
        image=window(raw.image, corner, size),
        badpix=None if bad is None else window(bad, corner, size, True),
        weight=None if raw.weight is None else window(raw.weight, corner, size),
    )


def _size(now: Size, cut: Cut) -> Size:
    """Return the size after cropping and padding."""
    size = now if cut.crop is None else cut.crop
    if cut.pad is None:
        return size
    if cut.crop is None and (now[0] > cut.pad[0] or now[1] > cut.pad[1]):
        raise BadFile(
            f"its {now[0]}x{now[1]} pixels are more than --pad {cut.pad[0]}x{cut.pad[1]}; give "
            "--crop too"
        )
    return max(size[0], cut.pad[0]), max(size[1], cut.pad[1])


def _to_scale(raw: Raw, scale: float, before: float | None) -> tuple[Raw, float]:
    own = raw.pixel_scale_arcsec or before
    if own is None:
        raise BadFile("it says no pixel scale, which resampling needs: give --pixel-scale")
    ratio = scale / own
    if abs(ratio - 1) < 1e-4:
        return replace(raw, pixel_scale_arcsec=scale), 1.0
    bad, weight = raw.badpix, raw.weight
    if weight is not None:
        empty = weight <= 0
        bad = empty if bad is None else empty | bad
        variance = resampled(1 / np.where(empty, 1, weight), ratio, power=2)
        weight = 1 / np.maximum(variance, np.finfo(np.float32).tiny)
    return replace(
        raw,
        image=resampled(raw.image, ratio),
        badpix=None if bad is None else resampled(bad, ratio) > 1e-9,
        weight=weight,
        psf=None if raw.psf is None else _psf(raw.psf, ratio),
        pixel_scale_arcsec=scale,
    ), ratio


def _psf(psf: Array, ratio: float) -> Array:
    """Resample a PSF; an odd side keeps its middle in the middle of a pixel."""
    height, width = (2 * math.ceil((n / ratio - 1) / 2) + 1 for n in psf.shape[-2:])
    return resampled(psf, ratio, size=(height, width))


def _centre(raw: Raw, centre: Any) -> npt.NDArray[np.float64]:
    """Return row and column of the brightest good pixel, or of RA and Dec."""
    if centre == "brightest":
        pixels = np.where(np.isfinite(raw.image), raw.image, 0)
        while pixels.ndim > 2:
            pixels = pixels.sum(axis=0, dtype=np.float64)
        if raw.badpix is not None:
            hidden = raw.badpix.reshape(-1, *raw.badpix.shape[-2:]).all(axis=0)
            pixels = np.where(hidden, -np.inf, pixels)
        return np.array(np.unravel_index(np.argmax(pixels), pixels.shape), float)
    if raw.wcs is None:
        raise BadFile("it has no celestial coordinates (WCS), which RA and Dec need")
    try:
        column, row = raw.wcs.all_world2pix([centre], 0)[0]
    except Exception as error:  # wcslib raises many kinds of errors
        raise BadFile(f"RA {centre[0]:g}, Dec {centre[1]:g} has no place in it") from error
    height, width = raw.image.shape[-2:]
    if not (-0.5 <= row <= height - 0.5 and -0.5 <= column <= width - 0.5):
        raise BadFile(f"RA {centre[0]:g}, Dec {centre[1]:g} lies outside of it")
    return np.array([row, column])


def _on_sky(raw: Raw, at: npt.NDArray[np.float64]) -> Point | None:
    """Return RA and Dec of a row and column of the image before it was resampled."""
    if raw.wcs is None:
        return raw.position
    ra, dec = raw.wcs.all_pix2world([at[::-1]], 0)[0]
    return (float(ra), float(dec)) if math.isfinite(ra) and math.isfinite(dec) else None
