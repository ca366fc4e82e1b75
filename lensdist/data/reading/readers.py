"""Read one image file into a checked `Reading`, or raise the reason why not (torch-free).

Files are read once; the same bytes are hashed and parsed.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lensdist.data.reading import containers
from lensdist.data.reading.fits import parse_fits
from lensdist.data.reading.numpy_files import parse_npy, parse_npz
from lensdist.data.reading.pictures import PICTURES, parse_picture
from lensdist.data.reading.raw import (
    MAP_ROLES,
    Array,
    BadFile,
    Nan,
    Raw,
    read_bytes,
    stacked,
    unpacked,
    with_maps,
)
from lensdist.data.reading.resize import Cut, resized
from lensdist.data.reading.roles import Role
from lensdist.utils.errors import UserError

ENDINGS = ".npy, .npz, .fits, .fit, .fts, each also .gz or .bz2, .fits.fz, .png, .jpg and .tif"
"""The endings of image files, in upper or lower case."""
_NAME = re.compile(
    r"(.+?)(?:(\.np[yz])(?:\.gz|\.bz2)?|(\.fits|\.fit|\.fts)(?:\.gz|\.bz2|\.fz)?"
    r"|(\.png|\.jpe?g|\.tiff?))",
    re.IGNORECASE | re.DOTALL,
)
MAX_BANDS = 16
Axes = Literal["CHW", "HWC"]


@dataclass(frozen=True, slots=True)
class Reading:
    """The content of one image file, in one form for all file types."""

    image: npt.NDArray[np.float32]
    """(C, H, W), finite, in the file's own units; 0 where `badpix`."""
    mass: float = math.nan
    """Axion mass, eV; NaN where unknown."""
    badpix: npt.NDArray[np.bool_] | None = None
    """(C, H, W), true where a pixel is bad."""
    weight: npt.NDArray[np.float32] | None = None
    """(C, H, W), >= 0."""
    psf: npt.NDArray[np.float32] | None = None
    """(1 or C, h, w), with sum 1."""
    pixel_scale_arcsec: float | None = None
    zero_point_mag: float | None = None
    unit: str = ""
    """`BUNIT` of a FITS header."""
    position: tuple[float, float] | None = None
    """RA and Dec of the image's centre, degrees."""
    stretched: bool = False
    """Whether it is a picture for the eye, whose values are not proportional to flux."""


def form(name: str) -> tuple[str, str] | None:
    """Split an image file's name: `a.FITS.gz` is `("a", ".fits")`. None: not an image file."""
    found = _NAME.fullmatch(name)
    return (found[1], (found[2] or found[3] or found[4]).lower()) if found else None


def check_choice(hdu: str | None, names: Iterable[str]) -> None:
    """Check that `--hdu` can mean something in these files.

    Raises:
        UserError: none of them can hold several images.
    """
    forms = (form(Path(name).name) for name in names)
    if hdu is not None and not any(
        not each or each[1] not in (".npy", *PICTURES) for each in forms
    ):
        raise UserError(
            f"--hdu {hdu} chooses an image of FITS, .npz or HDF5 files; there are none here"
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """What to take from files that hold several images, and what NaN means in them."""

    hdu: str | None = None
    """The image of a FITS file, by number or name, or the array of a .npz, by name."""
    bands: tuple[str, ...] = ()
    """The bands of an image, by name."""
    nan: Nan | None = None
    """`mask`: pixels without data; `refuse`: damage. None: `mask` in FITS, where the standard says
    so, elsewhere `refuse`."""
    cut: Cut | None = None
    """How images are resampled, cropped and padded."""
    axes: Axes | None = None
    """Whether bands are the first or the last axis of an array; None: found by its shape."""


ONLY = Choice()
"""The only image of a file."""


def read(path: Path) -> Reading:
    """Read and check one image file; see `read_bytes` and `parse`."""
    return parse(read_bytes(path), (form(path.name) or ("", ""))[1])


class Together(NamedTuple):
    """The files of one sample, read.

    Attributes:
        raw: the image of all bands, with its maps.
        hashes: SHA-256 of each file.
        first: the bytes of the first file, as in the file.
        suffix: the type of the first file, as `form` gives it; an image of a stack is an .npy file.
    """

    raw: Raw
    hashes: list[str]
    first: bytes
    suffix: str


def read_together(
    bands: Sequence[Path], maps: Sequence[tuple[int, Role, Path]], choice: Choice
) -> Together:
    """Read the files of an image's bands, and of the maps that belong to them.

    Args:
        bands: a file for each band, or the only one.
        maps: the number of the band, the role and the file of each map.
        choice: what to take of the bands' files.

    Raises:
        BadFile: see `parse`.
    """
    hashes: list[str] = []

    def read(path: Path, choice: Choice) -> tuple[bytes, str, list[Raw]]:
        packed = containers.inside(path)
        data, name = containers.read_inside(*packed) if packed else (read_bytes(path), path.name)
        hashes.append(hashlib.sha256(data).hexdigest())
        suffix = (form(name) or ("", name))[1]
        return data, suffix, parse_raws(data, suffix, choice)

    raws, first, kind = list[Raw](), b"", ""
    for number, path in enumerate(bands):
        data, suffix, found = read(path, choice)
        first, kind = first or data, kind or suffix
        own: dict[Role, Array] = {}
        for of, role, file in maps:
            if of == number and role in MAP_ROLES:
                try:
                    own[role] = read(file, ONLY)[2][0].image
                except BadFile as error:
                    raise BadFile(f"its {role} map {file.name} cannot be used: {error}") from error
        raws += [with_maps(raw, own) for raw in found]
    return Together(_joined(raws, choice), hashes, first, kind)


def _joined(raws: Sequence[Raw], choice: Choice) -> Raw:
    """Return an image of all bands, each resampled and cropped as chosen."""
    if choice.cut is not None:
        raws = [resized(raw, choice.cut, choice.nan) for raw in raws]
    return stacked(raws) if len(raws) > 1 else raws[0]


def parse(data: bytes, suffix: str, choice: Choice = ONLY) -> Reading:
    """Turn a file's bytes into a checked image.

    Args:
        data: the bytes, as in the file or `unpacked`.
        suffix: the file type, as `form` gives it.
        choice: see `Choice`.

    Raises:
        BadFile: it is damaged, hostile, not one image of real numbers, constant, or has NaN or
            infinity outside its bad pixels; or it has several images and none is chosen.
    """
    return checked(_joined(parse_raws(data, suffix, choice), choice), choice.nan)


def parse_raws(data: bytes, suffix: str, choice: Choice) -> list[Raw]:
    """Return the chosen images of a file, (C, H, W) or (H, W), which `checked` has not seen yet.

    Raises:
        BadFile: see `parse`.
    """
    try:
        raws = _parsers(choice)[suffix.lower()](unpacked(data))
    except (BadFile, UserError):
        raise
    except Exception as error:  # parsers raise any exception on damaged bytes
        raise BadFile(f"it is damaged ({type(error).__name__})") from error
    return [
        replace(
            raw,
            image=_bands(raw.image, "image", choice.axes),
            badpix=None if raw.badpix is None else _bands(raw.badpix, "mask", choice.axes),
            weight=None if raw.weight is None else _bands(raw.weight, "weight", choice.axes),
        )
        for raw in raws
    ]


def _parsers(choice: Choice) -> dict[str, Callable[[bytes], list[Raw]]]:
    return {
        ".npy": lambda data: [parse_npy(data)],
        ".npz": lambda data: [parse_npz(data, choice.hdu)],
        **dict.fromkeys(
            (".fits", ".fit", ".fts"), lambda data: parse_fits(data, choice.hdu, choice.bands)
        ),
        **dict.fromkeys(PICTURES, lambda data: [parse_picture(data)]),
    }


def checked(raw: Raw, nan: Nan | None = None) -> Reading:
    """Return a file's arrays in one form.

    Raises:
        BadFile: see `parse`.
    """
    image = _bands(raw.image, "image")
    badpix = weight = None
    if raw.weight is not None:
        weight = _extra(raw.weight, "weight", image.shape).astype(np.float32)
        if not (np.isfinite(weight).all() and (weight >= 0).all()):
            raise BadFile("its weights are not all finite and >= 0")
    if raw.badpix is not None:
        badpix = _extra(raw.badpix, "mask", image.shape) != 0
    if weight is not None and not weight.all():  # surveys give weight 0 to pixels without data
        badpix = (weight == 0) if badpix is None else badpix | (weight == 0)
    if (nan or ("mask" if raw.blank else "refuse")) == "mask" and image.dtype.kind == "f":
        empty = np.isnan(image)
        if empty.any():
            badpix = empty if badpix is None else badpix | empty
    if badpix is not None:
        image = np.where(badpix, 0, image)
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        told = "; --nan mask takes NaN for pixels without data" if np.isnan(image).any() else ""
        raise BadFile(f"it has NaN or infinity where no mask says so{told}")
    with np.errstate(over="ignore"):
        image = np.ascontiguousarray(image, np.float32)
    if not np.isfinite(image).all():
        raise BadFile("it has values beyond the range of float32")
    good = image if badpix is None else image[~badpix]
    if not good.size or good.min() == good.max():
        raise BadFile("it is constant: every good pixel has the same value")
    return Reading(
        image,
        raw.mass,
        badpix,
        weight,
        None if raw.psf is None else _psf(raw.psf, len(image)),
        raw.pixel_scale_arcsec,
        raw.zero_point_mag,
        raw.unit,
        raw.position,
        raw.stretched,
    )


def _psf(array: Array, bands: int) -> npt.NDArray[np.float32]:
    psf = _bands(array, "PSF").astype(np.float64)
    total = psf.sum((1, 2), keepdims=True)
    if len(psf) not in (1, bands) or not np.isfinite(psf).all() or not (total > 0).all():
        raise BadFile("its PSF is not one or a band's finite image with a positive sum")
    return np.asarray(psf / total, np.float32)


def bands_last(shape: tuple[int, ...]) -> bool:
    """Return whether an array is (H, W, C): its last axis is short, and the others are not."""
    least = min(shape[:2])
    return len(shape) == 3 and (shape[2] <= 4 < least or shape[2] <= MAX_BANDS < least)


def _bands(array: Array, what: str, axes: Axes | None = None) -> Array:
    """Return (H, W), (C, H, W), (H, W, C) and FITS's (1, 1, H, W) as (C, H, W)."""
    if array.dtype.kind not in "fiub":
        raise BadFile(f"its {what} is not made of real numbers")
    shape = array.shape
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or 0 in array.shape:
        raise BadFile(f"its {what} is of shape {shape}, not (H, W), (C, H, W) or (H, W, C)")
    if axes == "HWC" or (axes is None and bands_last(array.shape)):
        array = np.moveaxis(array, -1, 0)
    if array.shape[0] > MAX_BANDS:
        raise BadFile(
            f"its {what} is of shape {shape}, {array.shape[0]} bands of {array.shape[1:]} pixels: "
            "if it is a stack of images, save it as .npy and type --axes NHW; if its bands stand "
            "last, --axes HWC"
        )
    return array


def _extra(array: Array, what: str, shape: tuple[int, ...]) -> Array:
    """Return a mask or weight map for every band; one map serves all bands."""
    array = _bands(array, what)
    if array.shape[1:] != shape[1:] or array.shape[0] not in (1, shape[0]):
        raise BadFile(f"its {what} is not of the image's shape")
    return np.broadcast_to(array, shape)
