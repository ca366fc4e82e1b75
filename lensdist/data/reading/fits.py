"""Read FITS images with their masks, weights, pixel scale and zero point (torch-free)."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from lensdist.data.reading.fits_bounds import check_gzip_tiles, check_structure
from lensdist.data.reading.raw import BadFile, Raw

_MASKS = ("MASK", "DQ")
_WEIGHTS = ("WHT", "WEIGHT")
# HDUs that pipelines such as HST's and JWST's write along with an image.
_NOT_IMAGES = (
    *_MASKS, *_WEIGHTS, "ERR", "VAR", "VARIANCE", "IVAR", "PSF", "RMS", "NOISE", "SIGMA", "CON",
    "CTX", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT",
)  # fmt: skip
_ZERO_POINTS = ("ZEROPNT", "MAGZERO", "PHOTZP", "ZP")
_LISTED = 30  # HDUs that a message names
_ARCSEC = {"deg": 3600.0, "arcmin": 60.0, "arcsec": 1.0}


def parse_fits(data: bytes, choice: str | None = None) -> Raw:
    """Read the chosen image, or the only one that is not a mask, weight or error map.

    `MASK` or `DQ` gives bad pixels (nonzero is bad), `WHT` or `WEIGHT` the weights.

    Raises:
        BadFile: no image, several and no choice, or more than may be unpacked.
    """
    with open_fits(data) as hdus:
        science = science_hdu(hdus, choice)
        return Raw(
            _pixels(science, data, hdus),
            badpix=_pixels(_beside(hdus, _MASKS, science), data, hdus),
            weight=_pixels(_beside(hdus, _WEIGHTS, science), data, hdus),
            pixel_scale_arcsec=_pixel_scale(science.header),
            zero_point_mag=_zero_point(science.header, hdus[0].header),
        )


@contextmanager
def open_fits(data: bytes) -> Iterator[Any]:
    """Open a file with astropy, once its structure is known to be small enough.

    Raises:
        BadFile: it is not FITS, or see `check_structure`.
    """
    from astropy.io import fits

    if not data.startswith(b"SIMPLE  ="):
        raise BadFile("it is not a FITS file")
    check_structure(data)
    quiet = warnings.catch_warnings(action="ignore")  # astropy warns of every odd card
    with quiet, fits.open(io.BytesIO(data), memmap=False) as hdus:
        yield hdus


def science_hdu(hdus: Any, choice: str | None = None) -> Any:
    """Return the HDU with the image: the chosen one, or the only one that is a science image.

    Args:
        hdus: all HDUs of the file.
        choice: the HDU's number from 0, or its EXTNAME in upper or lower case.

    Raises:
        BadFile: there is none, or there are several; the message lists all HDUs.
    """
    images = _images(hdus)
    if choice is None:
        found = [hdu for hdu in images if hdu.name not in _NOT_IMAGES]
    elif choice.isdecimal():
        found = [hdu for i, hdu in enumerate(hdus) if i == int(choice) and hdu in images]
    else:
        found = [hdu for hdu in images if hdu.name == choice.upper()]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(
        f"{i} {hdu.name} ({'x'.join(map(str, hdu.shape)) or 'empty' if hdu.is_image else 'table'})"
        for i, hdu in enumerate(hdus[:_LISTED])
    ) + (f" and {len(hdus) - _LISTED} more" if len(hdus) > _LISTED else "")
    many = f"has {len(found)} images" if found else "has no image"
    if choice is None:
        raise BadFile(f"it {many}{'; choose one with --hdu NAME or N' if found else ''}: {listed}")
    raise BadFile(f"it {many} that --hdu {choice} could mean: {listed}")


def _images(hdus: Any) -> list[Any]:
    return [hdu for hdu in hdus if hdu.is_image and hdu.header.get("NAXIS", 0) > 0]


def _beside(hdus: Any, names: tuple[str, ...], science: Any) -> Any:
    """Return the HDU of the first of these names that exists, or None.

    Where several HDUs have the name, or several images have the science image's name, it must have
    the science image's EXTVER.
    """
    images = _images(hdus)
    found: list[Any] = next(
        (same for name in names if (same := [hdu for hdu in images if hdu.name == name])), []
    )
    if len(found) > 1 or sum(hdu.name == science.name for hdu in images) > 1:
        found = [hdu for hdu in found if hdu.ver == science.ver]
    if len(found) > 1:
        raise BadFile(f"it has {len(found)} HDUs called {found[0].name} with one EXTVER")
    return found[0] if found else None


def _pixels(hdu: Any, data: bytes, hdus: Any) -> Any:
    from astropy.io import fits

    if hdu is None:
        return None
    if isinstance(hdu, fits.CompImageHDU):
        options = {"memmap": False, "disable_image_compression": True}
        with fits.open(io.BytesIO(data), **options) as tables:
            check_gzip_tiles(tables[hdus.index(hdu)])
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
    """Return arcsec per pixel, the root of a pixel's area (Greisen & Calabretta 2002)."""
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
