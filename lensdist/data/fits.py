"""FITS images with their masks, weights, pixel scale and zero point (torch-free)."""

from __future__ import annotations

import io
import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from lensdist.data.quarantine import BadFile
from lensdist.data.readers import Raw

_MASKS = ("MASK", "DQ")
_WEIGHTS = ("WHT", "WEIGHT")
_NOT_IMAGES = (*_MASKS, *_WEIGHTS, "ERR", "VAR", "VARIANCE", "IVAR", "PSF")
_ZERO_POINTS = ("ZEROPNT", "MAGZERO", "PHOTZP", "ZP")
# Compressed images stay tables: their tiles unpack to what the file says, without a bound.
OPTIONS = {"memmap": False, "disable_image_compression": True}
"""Of `astropy.io.fits.open`, for files of strangers."""

_ARCSEC = {"deg": 3600.0, "arcmin": 60.0, "arcsec": 1.0}


def parse_fits(data: bytes) -> Raw:
    """Read `SCI`, or else the first image with data that is not a mask, weight or error map.

    `MASK` or `DQ` gives bad pixels (nonzero is bad), `WHT` or `WEIGHT` the weights.

    Raises:
        BadFile: no image, or one whose header promises more than the file holds.
    """
    from astropy.io import fits

    if not data.startswith(b"SIMPLE  ="):
        raise BadFile("it is not a FITS file")
    quiet = warnings.catch_warnings(action="ignore")  # astropy warns of every odd card
    with quiet, fits.open(io.BytesIO(data), **OPTIONS) as hdus:
        if any(hdu.header.get("ZIMAGE") for hdu in hdus):
            raise BadFile("it is tile-compressed: unpack it with `funpack` first")
        images = _images(hdus)
        science = science_hdu(hdus)
        return Raw(
            _pixels(science, len(data)),
            badpix=_pixels(_named(images, _MASKS), len(data)),
            weight=_pixels(_named(images, _WEIGHTS), len(data)),
            pixel_scale_arcsec=_pixel_scale(science.header),
            zero_point_mag=_zero_point(science.header, hdus[0].header),
        )


def science_hdu(hdus: Any) -> Any:
    """The HDU with the image: `SCI`, or else the first that is not a mask, weight or error map.

    Raises:
        BadFile: there is none.
    """
    images = _images(hdus)
    found = _named(images, ("SCI",)) or next(
        (hdu for hdu in images if hdu.name not in _NOT_IMAGES), None
    )
    if found is None:
        raise BadFile("it has no image")
    return found


def _images(hdus: Any) -> list[Any]:
    return [hdu for hdu in hdus if hdu.is_image and hdu.header.get("NAXIS", 0) > 0]


def _named(hdus: list[Any], names: tuple[str, ...]) -> Any:
    return next((hdu for name in names for hdu in hdus if hdu.name == name), None)


def _pixels(hdu: Any, present: int) -> Any:
    if hdu is None:
        return None
    header = hdu.header
    shape = [int(header[f"NAXIS{i + 1}"]) for i in range(int(header["NAXIS"]))]
    if min(shape) < 0 or math.prod(shape) * abs(int(header["BITPIX"])) // 8 > present:
        raise BadFile("it is cut short: its header promises more pixels than the file holds")
    pixels: npt.NDArray[Any] = np.asarray(hdu.data)
    return pixels


def _zero_point(*headers: Any) -> float | None:
    for header in headers:
        for key in _ZERO_POINTS:
            value = header.get(key)
            if isinstance(value, (int, float)) and math.isfinite(value):
                return float(value)
    return None


def _pixel_scale(header: Any) -> float | None:
    """Arcseconds a pixel: the root of a pixel's area on the sky (Greisen & Calabretta 2002)."""
    if not str(header.get("CTYPE1", "")).startswith(("RA", "DEC", "GLON", "GLAT", "ELON", "ELAT")):
        return None
    if "CD1_1" in header:
        matrix = [[float(header.get(f"CD{i}_{j}", 0.0)) for j in (1, 2)] for i in (1, 2)]
    else:
        matrix = [
            [float(header.get(f"CDELT{i}", 1.0)) * float(header.get(f"PC{i}_{j}", i == j))
             for j in (1, 2)]
            for i in (1, 2)
        ]  # fmt: skip
    unit = _ARCSEC.get(str(header.get("CUNIT1", "deg")).strip() or "deg")
    area = abs(matrix[0][0] * matrix[1][1] - matrix[0][1] * matrix[1][0])
    return math.sqrt(area) * unit if unit and 0 < area < math.inf else None
