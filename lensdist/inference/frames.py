"""Image files as read, with the shape and FITS headers for the output (torch-free)."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lensdist.data.reading.fits import cube_of, open_fits, science_hdu
from lensdist.data.reading.numpy_files import image_member, open_npz, read_header
from lensdist.data.reading.pictures import PICTURES
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
from lensdist.data.reading.resize import resized
from lensdist.inference.comparable import Wanted, change
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
    changes: str = ""
    """How the image was made comparable with the training images; empty: it is as in its file."""

    @property
    def bad(self) -> npt.NDArray[np.bool_] | None:
        """(C, H, W), true where a pixel is bad; None: all are good."""
        bad = self.reading.badpix
        return bad if bad is not None and bad.any() else None


def read_item(
    source: Input, framed: bool, choice: Choice = ONLY, wanted: Wanted | None = None
) -> Item:
    """Read a file's image and, if `framed`, its shape and headers; else make it as `wanted`.

    Raises:
        BadFile: the file is of another kind, or see `readers.parse`.
    """
    if source.refused:
        raise BadFile(source.refused)
    if source.container is None and form(source.path.name) is None:
        raise BadFile(f"it is not an image file: names end in {ENDINGS}")
    read = read_together([source.path, *source.more], source.maps, choice)
    reading = checked(read.raw, choice.nan)
    if wanted is not None and (changed := change(reading, wanted, source.at)) is not None:
        cut, said = changed
        try:
            raw = resized(read.raw, cut, choice.nan)
        except BadFile as error:  # `pack` could add pixels, of which nothing is known
            raise BadFile(str(error).partition("; --pad")[0]) from error
        said = "; ".join(filter(None, (_said(choice), said)))
        return Item(source, checked(raw, choice.nan), Frame(()), said)
    try:
        if not framed:
            return Item(source, reading, Frame(()), _said(choice))
        data, suffix = unpacked(read.first), read.suffix
        if suffix == ".npy":
            # The shape of an axion file is (2,), so its image of (H, W) has no axis before.
            frame = Frame(read_header(io.BytesIO(data))[0][:-2])
        elif suffix == ".npz":
            frame = Frame(_shape_in_archive(data, choice.hdu)[:-2])
        elif suffix in PICTURES:
            frame = Frame(() if len(reading.image) == 1 else (len(reading.image),))
        else:
            frame = _fits_frame(data, choice)
        bands = len(reading.image)
        if math.prod(frame.leading) != bands:  # chosen ones, or they stand last in the file
            frame = replace(frame, leading=(bands,))
        return Item(source, reading, frame)
    except BadFile:
        raise
    except Exception as error:  # damaged bytes may raise anything
        raise BadFile(f"it is damaged ({type(error).__name__})") from error


def _said(choice: Choice) -> str:
    return "" if choice.cut is None else str(choice.cut)


def _shape_in_archive(data: bytes, hdu: str | None) -> tuple[int, ...]:
    with open_npz(data) as archive:
        key = image_member(archive, hdu)
        name = key if key in archive.namelist() else f"{key}.npy"
        with archive.open(name) as stream:
            return read_header(stream)[0]


def _fits_frame(data: bytes, choice: Choice) -> Frame:
    with open_fits(data) as hdus:
        band = next(iter(choice.bands), None)
        science = (cube_of(hdus) if band else None) or science_hdu(hdus, choice.hdu, band)
        axes = range(science.header["NAXIS"], 2, -1)
        return Frame(
            tuple(int(science.header[f"NAXIS{i}"]) for i in axes),
            science.header,
            None if science is hdus[0] else hdus[0].header,
        )
