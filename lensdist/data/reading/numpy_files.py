"""NumPy's .npy files and .npz archives, read without pickle (torch-free).

A header is only a claim: nothing is allocated before its sizes agree with the bytes in the file.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections import Counter
from typing import Any, BinaryIO

import numpy as np

from lensdist.data.reading.object_arrays import parse_axion
from lensdist.data.reading.raw import Array, BadFile, Raw, check_unpacked_size

_MAX_MEMBERS = 1000  # of an archive; zipfile keeps 500 bytes of each
_BESIDE = ("mask", "badpix", "weight", "mass")  # arrays of a .npz that describe its image


def read_header(stream: BinaryIO | Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read an .npy header (NEP 1) and return shape, Fortran order and dtype.

    Raises:
        BadFile: it is damaged, or of a format version that no image needs.
    """
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(stream)  # NumPy bounds the header's length
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(stream)
    except ValueError as error:
        raise BadFile("it is not an .npy file, or its header is damaged") from error
    raise BadFile("it is of an .npy version that no image needs")


def parse_npy(data: bytes) -> Raw:
    """Read an .npy file: an array of real numbers, or an axion file's image and mass.

    Raises:
        BadFile: it is anything else, or its header does not agree with its length.
    """
    stream = io.BytesIO(data)
    shape, fortran, dtype = read_header(stream)
    if dtype.kind == "O" and shape == (2,):
        return Raw(*parse_axion(data[stream.tell() :]))
    if dtype.kind == "O":
        raise BadFile(
            "it holds Python objects, which are not an image and a mass: save images as one array "
            "of numbers, with np.stack, and dictionaries with np.savez"
        )
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
    """Return the name of the array that is the image: the one chosen, `image`, or the only one.

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


def parse_npz(data: bytes, choice: str | None) -> Raw:
    """Read one array, or `image` with `mask` or `badpix` (nonzero is bad), `weight` and `mass`.

    Raises:
        BadFile: there is no one image, or a member is too large, damaged or not understood.
    """
    with open_npz(data) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        check_unpacked_size(sum(info.file_size for info in archive.infolist()))

        def member(name: str) -> Array | None:
            if name not in members:
                return None
            if members[name].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise BadFile("it is compressed by a method that NumPy does not write")
            return parse_npy(archive.read(members[name])).image  # checks the CRC

        image, mask, mass = member(image_member(archive, choice)), member("mask"), member("mass")
        assert image is not None
        if mass is not None and (mass.size != 1 or not mass.item() > 0):
            raise BadFile("its mass is not one positive number")
        return Raw(
            image,
            mass=math.nan if mass is None else float(mass.item()),
            badpix=mask if mask is not None else member("badpix"),
            weight=member("weight"),
        )
