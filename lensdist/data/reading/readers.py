"""One image file to one `Reading`, or a sentence saying why not (torch-free).

Files are read once; those bytes are hashed, and those bytes are parsed. A header is a claim:
nothing is allocated on its word, and sizes must agree with the bytes that are there.
"""

from __future__ import annotations

import bz2
import gzip
import io
import math
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lensdist.data.packing.report import BadFile
from lensdist.data.reading.object_arrays import parse_axion
from lensdist.errors import UserError

ENDINGS = ".npy, .npz, .fits, .fit, .fts, each also .gz or .bz2, and .fits.fz"
"""How names of image files end, in any case."""
_NAME = re.compile(
    r"(.+?)(?:(\.np[yz])(?:\.gz|\.bz2)?|(\.fits|\.fit|\.fts)(?:\.gz|\.bz2|\.fz)?)",
    re.IGNORECASE | re.DOTALL,
)
MAX_BYTES = 256 << 20  # of a file, and of what a compressed one may grow to
_MAX_MEMBERS = 1000  # of a .npz; zipfile keeps 500 bytes of each
_MAX_BANDS = 16
_BESIDE = ("mask", "badpix", "weight", "mass")  # arrays of a .npz that say something of the image

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file says, in one form."""

    image: npt.NDArray[np.float32]
    """(C, H, W), finite, in the file's own units; 0 where `badpix`."""
    mass: float = math.nan
    """Axion mass, eV; NaN where unknown."""
    badpix: npt.NDArray[np.bool_] | None = None
    """(C, H, W), true where a pixel is bad."""
    weight: npt.NDArray[np.float32] | None = None
    """(C, H, W), >= 0."""
    pixel_scale_arcsec: float | None = None
    zero_point_mag: float | None = None


@dataclass(slots=True)
class Raw:
    """The arrays of a file before they are checked."""

    image: Array
    mass: float = math.nan
    badpix: Array | None = None
    weight: Array | None = None
    pixel_scale_arcsec: float | None = None
    zero_point_mag: float | None = None


def form(name: str) -> tuple[str, str] | None:
    """What an image file's name is made of: `("a", ".fits")` of `a.FITS.gz`; None: not an image."""
    found = _NAME.fullmatch(name)
    return (found[1], (found[2] or found[3]).lower()) if found else None


def check_choice(hdu: str | None, names: Iterable[str]) -> None:
    """Check that `--hdu` can mean anything in these files.

    Raises:
        UserError: none of them can hold several images.
    """
    forms = (form(Path(name).name) for name in names)
    if hdu is not None and not any(each and each[1] != ".npy" for each in forms):
        raise UserError(f"--hdu {hdu} chooses an image of FITS or .npz files; there are none here")


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The whole of a regular file of at most `MAX_BYTES`.

    Raises:
        BadFile: it is larger, empty, cannot be read, changes meanwhile, or is a pipe or device.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a device may already do something
            raise BadFile("it is not a regular file")
        # O_NONBLOCK: opening a named pipe would otherwise wait for ever for somebody to write.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise BadFile("it is not a regular file")
            if about.st_size > MAX_BYTES:
                raise BadFile(f"it is larger than {MAX_BYTES >> 20} MiB")
            data = file.read(MAX_BYTES + 1)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise BadFile(f"it cannot be read: {error.strerror}") from error
    if (len(data), after.st_mtime_ns) != (about.st_size, about.st_mtime_ns):
        raise BadFile("it changed while it was read")
    if not data:
        raise BadFile("it is empty")
    return data


def unpacked(data: bytes) -> bytes:
    """The bytes of a file that was compressed as a whole, by gzip or bzip2; else the same bytes.

    Raises:
        BadFile: they would be more than `MAX_BYTES`.
        OSError, EOFError, zlib.error: they are damaged.
    """
    stream = io.BytesIO(data)
    if data[:2] == b"\x1f\x8b":
        with gzip.open(stream) as file:
            data = file.read(MAX_BYTES + 1)
    elif data[:3] == b"BZh":
        with bz2.open(stream) as packed:
            data = packed.read(MAX_BYTES + 1)
    else:
        return data
    if len(data) > MAX_BYTES:
        raise BadFile(f"it unpacks to more than {MAX_BYTES >> 20} MiB")
    return data


def parse(data: bytes, suffix: str, hdu: str | None = None) -> Reading:
    """Turn a file's bytes into a checked image.

    Args:
        data: the bytes, as in the file or `unpacked`.
        suffix: see `form`.
        hdu: which image of a FITS file, by number or name, or which array of a .npz.

    Raises:
        BadFile: it is damaged, hostile, not one image of real numbers, constant, or has NaN or
            infinity outside its bad pixels; or it has several images, and `hdu` is None.
    """
    try:
        data = unpacked(data)
        if suffix.lower() == ".npy":
            raw = _parse_npy(data)
        elif suffix.lower() == ".npz":
            raw = _parse_npz(data, hdu)
        else:
            from lensdist.data.reading.fits import parse_fits

            raw = parse_fits(data, hdu)
        return _checked(raw)
    except BadFile:
        raise
    except Exception as error:  # a damaged file makes parsers raise whatever its bytes spell
        raise BadFile(f"it is damaged ({type(error).__name__})") from error


def read(path: Path) -> Reading:
    """`parse` of `read_bytes`."""
    return parse(read_bytes(path), (form(path.name) or ("", ""))[1])


def _parse_npy(data: bytes) -> Raw:
    """The `.npy` format (NEP 1), with the header held against the bytes that follow it."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise BadFile("it is of an .npy version that no image needs")
        header = np.lib.format.read_array_header_1_0  # bounds the header's length by itself
        if version == (2, 0):
            header = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(stream)
    except ValueError as error:
        raise BadFile("it is not an .npy file, or its header is damaged") from error
    if dtype.kind == "O" and shape == (2,):
        return Raw(*parse_axion(data[stream.tell() :]))
    if dtype.kind == "O":
        raise BadFile("it is an object array of another shape than (2,): an image and a mass")
    if dtype.kind not in "fiub":
        raise BadFile(f"it is made of {dtype}, not of real numbers")
    if any(n < 0 for n in shape):
        raise BadFile("its header gives a negative size")
    present = len(data) - stream.tell()
    declared = math.prod(shape) * dtype.itemsize
    if declared != present:
        what = "cut short" if declared > present else "followed by other bytes"
        raise BadFile(f"it is {what}: the header's shape and the bytes present do not agree")
    flat = np.frombuffer(data, dtype, offset=stream.tell())
    return Raw(flat.reshape(shape, order="F" if fortran else "C"))


def open_npz(data: bytes) -> zipfile.ZipFile:
    """Open an archive of arrays.

    Raises:
        BadFile: it has too many members, or two of one name.
    """
    if data.count(b"PK\x01\x02") > _MAX_MEMBERS:  # before zipfile makes an object of each
        raise BadFile(f"it holds more than {_MAX_MEMBERS} arrays")
    archive = zipfile.ZipFile(io.BytesIO(data))
    twice = [name for name, n in Counter(archive.namelist()).items() if n > 1]
    if twice:
        raise BadFile(f"it holds two arrays called {twice[0]!a}")
    return archive


def image_member(archive: zipfile.ZipFile, choice: str | None) -> str:
    """The name of the array that is the image: the one chosen, `image`, or the only one.

    Raises:
        BadFile: there is no such array, or there are several.
    """
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    images = [name for name in names if name not in _BESIDE]
    wanted = choice or ("image" if "image" in images or len(images) != 1 else images[0])
    if wanted in names:
        return wanted
    listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    if choice:
        raise BadFile(f"it holds no array {choice!a}, but {listed}")
    raise BadFile(
        f"it holds several arrays and none is called `image`; choose one with --hdu NAME: {listed}"
    )


def _parse_npz(data: bytes, choice: str | None) -> Raw:
    """One array, or `image` with `mask` or `badpix` (nonzero is bad), `weight` and `mass`."""
    with open_npz(data) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
            raise BadFile(f"it unpacks to more than {MAX_BYTES >> 20} MiB")
        key = image_member(archive, choice)

        def member(name: str) -> Array | None:
            if name not in members:
                return None
            if members[name].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise BadFile("it is compressed by a method that NumPy does not write")
            return _parse_npy(archive.read(members[name])).image  # checks the CRC

        image, mask, mass = member(key), member("mask"), member("mass")
        assert image is not None
        if mass is not None and (mass.size != 1 or not mass.item() > 0):
            raise BadFile("its mass is not one positive number")
        return Raw(
            image,
            mass=math.nan if mass is None else float(mass.item()),
            badpix=mask if mask is not None else member("badpix"),
            weight=member("weight"),
        )


def _bands(array: Array, what: str) -> Array:
    """(H, W), (1, H, W), (C, H, W) and FITS's (1, 1, H, W), all as (C, H, W)."""
    if array.dtype.kind not in "fiub":
        raise BadFile(f"its {what} is not made of real numbers")
    shape = array.shape
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or 0 in array.shape:
        raise BadFile(f"its {what} is of shape {shape}, not (H, W) or (C, H, W)")
    if array.shape[0] > _MAX_BANDS:
        raise BadFile(
            f"its {what} is of shape {shape}, {array.shape[0]} bands of {array.shape[1:]} pixels: "
            "a stack of images, or bands that stand last"
        )
    return array


def _checked(raw: Raw) -> Reading:
    image = _bands(raw.image, "image")
    badpix = weight = None
    if raw.weight is not None:
        weight = _extra(raw.weight, "weight", image.shape).astype(np.float32)
        if not (np.isfinite(weight).all() and (weight >= 0).all()):
            raise BadFile("its weights are not all finite and >= 0")
    if raw.badpix is not None:
        badpix = _extra(raw.badpix, "mask", image.shape) != 0
    elif weight is not None and not weight.all():
        badpix = weight == 0  # no weight is a survey's way of saying no data
    if badpix is not None:
        image = np.where(badpix, 0, image)
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise BadFile("it has NaN or infinity where no mask says so")
    with np.errstate(over="ignore"):
        image = np.ascontiguousarray(image, np.float32)
    if not np.isfinite(image).all():
        raise BadFile("it has values beyond the range of float32")
    good = image if badpix is None else image[~badpix]
    if not good.size or good.min() == good.max():
        raise BadFile("it is constant: every good pixel has the same value")
    return Reading(image, raw.mass, badpix, weight, raw.pixel_scale_arcsec, raw.zero_point_mag)


def _extra(array: Array, what: str, shape: tuple[int, ...]) -> Array:
    """A mask or weight map, for every band alike where it has none of its own."""
    array = _bands(array, what)
    if array.shape[1:] != shape[1:] or array.shape[0] not in (1, shape[0]):
        raise BadFile(f"its {what} is not of the image's shape")
    return np.broadcast_to(array, shape)
