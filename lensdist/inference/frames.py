"""Image files as read, with the shape and FITS headers for the output (torch-free)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lensdist.data.reading.fits import open_fits, science_hdu
from lensdist.data.reading.numpy_files import image_member, open_npz, read_header
from lensdist.data.reading.raw import BadFile, unpacked
from lensdist.data.reading.readers import (
    ENDINGS,
    ONLY,
    Choice,
    Reading,
    checked,
    form,
    read_together,
)
from lensdist.inference.inputs import Input


@dataclass(frozen=True, slots=True)
class Frame:
    """The shape and headers of an image in its file."""

    leading: tuple[int, ...]
    """The axes before (H, W): (), (C,), or FITS's (1, 1)."""
    science: Any = None
    """The header of the HDU with the image; None: not FITS."""
    primary: Any = None
    """The header of the primary HDU, if that is another HDU."""


@dataclass(frozen=True, slots=True)
class Item:
    """A file that was read."""

    source: Input
    reading: Reading
    frame: Frame

    @property
    def bad(self) -> npt.NDArray[np.bool_] | None:
        """(C, H, W), true where a pixel is bad; None: all are good."""
        bad = self.reading.badpix
        return bad if bad is not None and bad.any() else None


def read_item(source: Input, framed: bool, choice: Choice = ONLY) -> Item:
    """Read a file's image and, if `framed`, its shape and headers.

    Raises:
        BadFile: the file is of another kind, or see `readers.parse`.
    """
    named = form(source.path.name)
    if named is None:
        raise BadFile(f"it is not an image file: names end in {ENDINGS}")
    suffix = named[1]
    read = read_together([source.path, *source.more], source.maps, choice)
    reading = checked(read.raw, choice.nan)
    try:
        if not framed:
            return Item(source, reading, Frame(()))
        data = unpacked(read.first)
        if suffix == ".npy":
            # The shape of an axion file is (2,), so its image of (H, W) has no axis before.
            return Item(source, reading, Frame(read_header(io.BytesIO(data))[0][:-2]))
        if suffix == ".npz":
            return Item(source, reading, Frame(_shape_in_archive(data, choice.hdu)[:-2]))
        return Item(source, reading, _fits_frame(data, choice))
    except BadFile:
        raise
    except Exception as error:  # damaged bytes may raise anything
        raise BadFile(f"it is damaged ({type(error).__name__})") from error


def _shape_in_archive(data: bytes, hdu: str | None) -> tuple[int, ...]:
    with open_npz(data) as archive:
        key = image_member(archive, hdu)
        name = key if key in archive.namelist() else f"{key}.npy"
        with archive.open(name) as stream:
            return read_header(stream)[0]


def _fits_frame(data: bytes, choice: Choice) -> Frame:
    with open_fits(data) as hdus:
        science = science_hdu(hdus, choice.hdu, next(iter(choice.bands), None))
        axes = range(science.header["NAXIS"], 2, -1)
        several = len(choice.bands) > 1
        return Frame(
            (len(choice.bands),)
            if several
            else tuple(int(science.header[f"NAXIS{i}"]) for i in axes),
            science.header,
            None if science is hdus[0] else hdus[0].header,
        )
