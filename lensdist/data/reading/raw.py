"""The bytes of one file, and the arrays that a parser finds in them (torch-free)."""

from __future__ import annotations

import bz2
import gzip
import io
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lensdist.data.reading.roles import Role

MAX_BYTES = 256 << 20
"""Largest size of a file, also after decompression."""

MAP_ROLES: tuple[Role, ...] = ("mask", "weight", "variance", "rms", "psf")
"""The maps that are read beside an image."""
_NO_DATA = 1e15  # a standard deviation that no image has

Array = npt.NDArray[Any]
Nan = Literal["mask", "refuse"]


class BadFile(Exception):
    """One file cannot be used; the message is one sentence that says why."""


@dataclass(slots=True)
class Raw:
    """The arrays of a file before they are checked."""

    image: Array
    mass: float = math.nan
    badpix: Array | None = None
    weight: Array | None = None
    psf: Array | None = None
    pixel_scale_arcsec: float | None = None
    zero_point_mag: float | None = None
    unit: str = ""
    position: tuple[float, float] | None = None
    """RA and Dec of the centre, degrees."""
    wcs: Any = None
    """The `astropy.wcs.WCS` of the two image axes, where it is of RA and Dec."""
    blank: bool = False
    """Whether NaN means that a pixel has no data, as in FITS."""
    stretched: bool = False
    """Whether it is a picture for the eye, whose values are not proportional to flux."""


def with_maps(raw: Raw, maps: Mapping[Role, Array]) -> Raw:
    """Add maps to an image: bad pixels, weights (1 / variance where they are not given), PSF.

    A pixel of weight 0, or with no finite positive variance, is bad; surveys write a standard
    deviation of 1e16 where they have no data.
    """
    found = {}
    if "mask" in maps:
        found["badpix"] = maps["mask"] != 0
    if "psf" in maps:
        found["psf"] = maps["psf"]
    if "weight" in maps:
        found["weight"] = maps["weight"]
    elif "variance" in maps or "rms" in maps:
        with np.errstate(all="ignore"):
            variance = (
                maps["variance"] if "variance" in maps else np.square(maps["rms"], dtype=float)
            )
            good = (variance > 0) & (variance < _NO_DATA**2)
            found["weight"] = np.where(good, 1 / np.where(good, variance, 1), 0)
    return replace(raw, **found)


def stacked(raws: Sequence[Raw]) -> Raw:
    """Return images of one shape as the bands of one image.

    Raises:
        BadFile: they are not of one shape; resample them to one grid first.
    """
    first = raws[0]
    images = [raw.image if raw.image.ndim > 2 else raw.image[None] for raw in raws]
    if len({image.shape[-2:] for image in images}) > 1:
        shapes = ", ".join("x".join(map(str, image.shape[-2:])) for image in images)
        raise BadFile(f"its bands are of several shapes ({shapes}): resample them to one grid")

    def joined(name: Literal["badpix", "weight"], fill: float) -> Array | None:
        if all(getattr(raw, name) is None for raw in raws):
            return None
        parts = [getattr(raw, name) for raw in raws]
        whole = [
            np.full(image.shape, fill) if part is None else np.broadcast_to(part, image.shape)
            for part, image in zip(parts, images, strict=True)
        ]
        return np.concatenate(whole)

    scales = {raw.pixel_scale_arcsec for raw in raws}
    psfs = [raw.psf for raw in raws if raw.psf is not None]
    alike = len(psfs) == len(raws) and len({psf.shape for psf in psfs}) == 1
    return replace(
        first,
        image=np.concatenate(images),
        badpix=joined("badpix", 0),
        weight=joined("weight", 1),
        psf=np.stack(psfs) if alike else None,
        pixel_scale_arcsec=first.pixel_scale_arcsec if len(scales) == 1 else None,
        zero_point_mag=first.zero_point_mag if len({r.zero_point_mag for r in raws}) == 1 else None,
        unit=first.unit if len({raw.unit for raw in raws}) == 1 else "",
        blank=any(raw.blank for raw in raws),
    )


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read the whole of a regular file of at most `MAX_BYTES`.

    Raises:
        BadFile: it is larger, empty, unreadable, a pipe or device, or it changes meanwhile.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a device may already do something
            raise BadFile("it is not a regular file")
        # O_NONBLOCK: opening a named pipe would otherwise block until somebody writes to it.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise BadFile("it is not a regular file")
            if before.st_size > MAX_BYTES:
                raise BadFile(f"it is larger than {MAX_BYTES >> 20} MiB")
            data = file.read(MAX_BYTES + 1)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise BadFile(f"it cannot be read: {error.strerror}") from error
    if (len(data), after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise BadFile("it changed while it was read")
    if not data:
        raise BadFile("it is empty")
    return data


def check_unpacked_size(size: int) -> None:
    """Check that a compressed file does not unpack to more than `MAX_BYTES`.

    Raises:
        BadFile: it does.
    """
    if size > MAX_BYTES:
        raise BadFile(f"it unpacks to more than {MAX_BYTES >> 20} MiB")


def unpacked(data: bytes) -> bytes:
    """Undo gzip or bzip2 of a whole file; return other bytes as they are.

    Raises:
        BadFile: the result would be larger than `MAX_BYTES`.
        OSError, EOFError, zlib.error: the data are damaged.
    """
    if data[:2] == b"\x1f\x8b":
        with gzip.open(io.BytesIO(data)) as file:
            data = file.read(MAX_BYTES + 1)
    elif data[:3] == b"BZh":
        with bz2.open(io.BytesIO(data)) as packed:
            data = packed.read(MAX_BYTES + 1)
    else:
        return data
    check_unpacked_size(len(data))
    return data
