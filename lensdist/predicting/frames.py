"""What a predicted image inherits from its file: shape and FITS headers (torch-free)."""

from __future__ import annotations

import io
import warnings
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lensdist.data.fits import OPTIONS, science_hdu
from lensdist.data.quarantine import BadFile
from lensdist.data.readers import Reading, parse, read_bytes
from lensdist.predicting.inputs import Input

_BESIDE = ("mask", "badpix", "weight", "mass")


@dataclass(frozen=True, slots=True)
class Frame:
    """How a file held its image."""

    leading: tuple[int, ...]
    """Sizes before (H, W): (), (C,), or FITS's (1, 1)."""
    science: Any = None
    """Header of the HDU with the image; None: not FITS."""
    primary: Any = None
    """Header of the primary HDU where that is another."""


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


def read_item(source: Input, framed: bool) -> Item:
    """A file's image and, if `framed`, how the file held it, from one reading of its bytes.

    Raises:
        BadFile: see `readers.parse`.
    """
    data, suffix = read_bytes(source.path), source.path.suffix.lower()
    reading = parse(data, suffix)
    if not framed:
        return Item(source, reading, Frame(()))
    try:
        if suffix == ".npy":
            return Item(source, reading, Frame(_shape(io.BytesIO(data))[:-2]))
        if suffix == ".npz":
            return Item(source, reading, Frame(_shape_in_archive(data)[:-2]))
        return Item(source, reading, _fits_frame(data))
    except Exception as error:  # bytes that made pixels may still spell anything else
        raise BadFile(f"it is damaged ({type(error).__name__})") from error


def _shape(stream: Any) -> tuple[int, ...]:
    """Of an .npy file's header. DeepLenseSim's pairs, of shape (2,), hold an image (H, W)."""
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0
    if version == (2, 0):
        header = np.lib.format.read_array_header_2_0
    shape: tuple[int, ...] = header(stream)[0]
    return shape


def _shape_in_archive(data: bytes) -> tuple[int, ...]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist()}
        images = [name for key, name in members.items() if key not in _BESIDE]
        with archive.open(members.get("image", images[0])) as stream:
            return _shape(stream)


def _fits_frame(data: bytes) -> Frame:
    from astropy.io import fits

    quiet = warnings.catch_warnings(action="ignore")
    with quiet, fits.open(io.BytesIO(data), **OPTIONS) as hdus:
        science = science_hdu(hdus)
        axes = range(science.header["NAXIS"], 2, -1)
        return Frame(
            tuple(int(science.header[f"NAXIS{i}"]) for i in axes),
            science.header,
            None if science is hdus[0] else hdus[0].header,
        )
