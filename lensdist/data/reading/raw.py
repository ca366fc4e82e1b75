"""The bytes of one file, and the arrays that a parser finds in them (torch-free)."""

from __future__ import annotations

import bz2
import gzip
import io
import math
import os
import stat
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

MAX_BYTES = 256 << 20
"""Largest size of a file, also after decompression."""

Array = npt.NDArray[Any]


class BadFile(Exception):
    """One file cannot be used; the message is one sentence that says why."""


@dataclass(slots=True)
class Raw:
    """The arrays of a file before they are checked."""

    image: Array
    mass: float = math.nan
    badpix: Array | None = None
    weight: Array | None = None
    pixel_scale_arcsec: float | None = None
    zero_point_mag: float | None = None


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
