"""Read FITS images with their masks, weights, pixel scale and zero point (torch-free)."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lensdist.data.reading.fits_bounds import check_gzip_tiles, check_structure
from lensdist.data.reading.raw import MAP_ROLES, BadFile, Raw, with_maps
from lensdist.data.reading.roles import Role, named

_FILTERS = ("FILTER", "BAND", "FILTNAM1")
_ZERO_POINTS = ("ZEROPNT", "MAGZERO", "PHOTZP", "ZP")
_LISTED = 30  # HDUs that a message names
_ARCSEC = {"deg": 3600.0, "arcmin": 60.0, "arcsec": 1.0}


def parse_fits(data: bytes, choice: str | None = None, bands: Sequence[str] = ()) -> list[Raw]:
    """Read the chosen image, or the only one, or one of each band, with the maps that belong to it.

    A mask (`MASK`, `DQ`) gives bad pixels: nonzero is bad. A weight map (`WHT`, `IVAR`), a map of
    variances or one of standard deviations (`ERR`, `RMS`) gives weights. BLANK and NaN are bad.

    Args:
        data: the file's bytes.
        choice: the image's HDU, by number or by EXTNAME.
        bands: names of bands, by EXTNAME or FILTER, or by FILTER1, … or BAND1, … of a cube.

    Returns:
        An image for each band, or the only one.

    Raises:
        BadFile: no image, several and no choice, or more than may be unpacked.
    """
    with open_fits(data) as hdus:
        if not bands:
            return [_raw(science_hdu(hdus, choice), data, hdus)]
        cube = cube_of(hdus)
        if cube is None:
            return [_raw(science_hdu(hdus, band=band), data, hdus) for band in bands]
        names, whole = [*planes(cube)], _raw(cube, data, hdus)
        if missing := [band for band in bands if band.lower() not in names]:
            raise BadFile(
                f"its bands are {', '.join(names) or 'without names'}, without {missing[0]}"
            )
        return [_plane(whole, names.index(band.lower())) for band in bands]


def cube_of(hdus: Any) -> Any:
    """Return the HDU of the only science image, if its third axis is of bands; else None."""
    images = [hdu for hdu in hdus if hdu.is_image and hdu.header.get("NAXIS", 0) > 0]
    science = [hdu for hdu in images if named(hdu.name).role in (None, "image")]
    return science[0] if len(science) == 1 and planes(science[0]) else None


def planes(hdu: Any) -> list[str]:
    """Return the names of a cube's bands, from FILTER1, FILTER2, … or BAND1, …; else nothing."""
    if hdu.header.get("NAXIS") != 3:
        return []
    for key in ("FILTER", "BAND"):
        names = [str(hdu.header.get(f"{key}{i + 1}", "")).strip() for i in range(hdu.shape[0])]
        if all(names):
            return [name.lower() for name in names]
    return []


def _plane(cube: Raw, number: int) -> Raw:
    def cut(array: Any) -> Any:
        return array if array is None or array.ndim < 3 else array[number]

    return replace(
        cube,
        image=cut(cube.image),
        badpix=cut(cube.badpix),
        weight=cut(cube.weight),
        psf=cut(cube.psf),
    )


def _raw(science: Any, data: bytes, hdus: Any) -> Raw:
    maps = {role: _pixels(_beside(hdus, role, science), data, hdus) for role in MAP_ROLES}
    unit, wcs = science.header.get("BUNIT"), _celestial(science.header)
    raw = Raw(
        _pixels(science, data, hdus),
        pixel_scale_arcsec=_pixel_scale(science.header),
        zero_point_mag=_zero_point(science.header, hdus[0].header),
        unit=unit.strip() if isinstance(unit, str) else "",
        position=_position(science.header, wcs),
        wcs=wcs,
        blank=True,
    )
    return with_maps(raw, {role: pixels for role, pixels in maps.items() if pixels is not None})


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


def science_hdu(hdus: Any, choice: str | None = None, band: str | None = None) -> Any:
    """Return the HDU with the image: the chosen one, or the only one that is a science image.

    Args:
        hdus: all HDUs of the file.
        choice: the HDU's number from 0, or its EXTNAME in upper or lower case.
        band: the name of its band, in its EXTNAME or in its header.

    Raises:
        BadFile: there is none, or there are several; the message lists all HDUs.
    """
    images = [hdu for hdu in hdus if hdu.is_image and hdu.header.get("NAXIS", 0) > 0]
    science = [hdu for hdu in images if named(hdu.name).role in (None, "image")]
    if band is not None:
        found = [hdu for hdu in science if band.lower() in _bands_of(hdu)]
    elif choice is None:
        found = science
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
    if band is None and choice is None:
        if not found:
            raise BadFile(f"it {many}: {listed}")
        bands = [band for hdu in found if (band := named(hdu.name).stem.upper())]
        by_band = f"--bands, from {','.join(bands[:_LISTED])}, or " if bands else ""
        raise BadFile(f"it {many}; choose with {by_band}--hdu NAME or N: {listed}")
    wanted = f"--hdu {choice}" if band is None else f"--bands {band}"
    raise BadFile(f"it {many} that {wanted} could mean: {listed}")


def _bands_of(hdu: Any) -> set[str]:
    """Return the names of an image's band: that in EXTNAME, and its filter's."""
    filters = (str(hdu.header.get(key, "")).strip().lower() for key in _FILTERS)
    return {named(hdu.name).stem, *filters} - {""}


def _beside(hdus: Any, role: Role, science: Any) -> Any:
    """Return the HDU with the map of this role that belongs to an image, or None.

    It has the image's stem (`VIS_RMS` for `VIS_FLUX`) or none. Where several have, or where several
    images have the science image's name, it must have the science image's EXTVER.
    """
    images = [hdu for hdu in hdus if hdu.is_image and hdu.header.get("NAXIS", 0) > 0]
    maps = [(named(hdu.name), hdu) for hdu in images if hdu is not science]
    own = named(science.name).stem
    found = [hdu for cut, hdu in maps if cut == (own, role)]
    found = found or [hdu for cut, hdu in maps if cut == ("", role)]
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


def _celestial(header: Any) -> Any:
    """Return the WCS of the image axes, where it is of RA and Dec; else None."""
    if not str(header.get("CTYPE1", "")).startswith("RA") or "CRVAL1" not in header:
        return None
    from astropy.wcs import WCS

    with suppress(Exception):  # wcslib raises many kinds of errors on odd headers
        return WCS(header, naxis=2)
    return None


def _position(header: Any, wcs: Any) -> tuple[float, float] | None:
    """Return RA and Dec of the image's centre, degrees, where they are known."""
    with suppress(Exception):
        centre = [[(header[f"NAXIS{i}"] - 1) / 2 for i in (1, 2)]]
        ra, dec = wcs.wcs_pix2world(centre, 0)[0]
        if math.isfinite(ra) and math.isfinite(dec):
            return float(ra), float(dec)
    return None
