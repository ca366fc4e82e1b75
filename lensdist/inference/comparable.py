"""Make survey images comparable with a model's training images: size and pixel scale (torch-free).

An image of the trained size and scale is used as it is. Any other is resampled to the trained scale
and cut to the trained size, around its middle or around a place on the sky.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lensdist.data.reading.raw import BadFile
from lensdist.data.reading.readers import Reading
from lensdist.data.reading.resize import Cut, Point
from lensdist.inference.inputs import Input
from lensdist.utils.errors import UserError
from lensdist.utils.files import printable

_SAME_SCALE = 0.02  # relative difference of pixel scales that only rounding explains


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a model was trained on, and what is said of files without a header."""

    size: tuple[int, int] | None = None
    """Height and width, pixels; None: any."""
    scale: float | None = None
    """Arcsec a pixel; None: not known."""
    scale_of_files: float | None = None
    """Arcsec a pixel of files whose header says none."""
    bands: int | None = None
    """The number of bands; None: any."""


def change(reading: Reading, wanted: Wanted, at: Point | None) -> tuple[Cut, str] | None:
    """Return how to make an image comparable, and the words for it; None: it is as it should be.

    Args:
        reading: the image as it is in its file.
        wanted: what the model was trained on.
        at: RA and Dec of the new middle, degrees; None: the image's middle.

    Raises:
        BadFile: it cannot be made comparable; the reason says what to type.
    """
    now, own = reading.image.shape[1:], reading.pixel_scale_arcsec or wanted.scale_of_files
    size, bands = wanted.size, len(reading.image)
    if wanted.bands not in (None, bands):
        raise BadFile(
            f"it has {bands} band(s) and the model {wanted.bands}: choose those of FITS files with "
            "--bands, save a picture in grey, or type --axes NHW if it is a stack of images"
        )
    if size is None:
        return None
    known = own is not None and wanted.scale is not None
    same = not known or abs((own or 1) / (wanted.scale or 1) - 1) < _SAME_SCALE
    if same and now == size and at is None:
        return None
    before, after = ("{}x{}".format(*each) for each in (now, size))
    if not known and now != size:
        if wanted.scale is None:
            raise BadFile(
                f"it is of {before} pixels and the model of {after}, of a scale that is not known: "
                f"type --crop {size[0]} if its pixels are as large as those of the training images"
            )
        raise BadFile(
            f"it is of {before} pixels and the model of {after}, and its header says no pixel "
            f"scale: type --pixel-scale ARCSEC (the model's is {wanted.scale:g})"
        )
    ratio = 1.0 if same else (wanted.scale or 1) / (own or 1)
    if at is None and min(n / ratio + 1e-6 - m for n, m in zip(now, size, strict=True)) < 0:
        angle = size[0] * (wanted.scale or 1)
        raise BadFile(
            f"it is of {before} pixels of {own:g} arcsec, less than the model's {angle:.3g} "
            "arcsec a side: give a larger cutout"
        )
    said = [] if same else [f"resampled from {own:.4g} to {wanted.scale:.4g} arcsec"]
    place = "" if at is None else f" at {at[0]:.6f},{at[1]:.6f}"
    said += [f"cut from {before}{place}"]
    cut = Cut(
        crop=size,
        scale=None if same else wanted.scale,
        centre="image" if at is None else at,
        scale_before=own,
    )
    return cut, "; ".join(said)


def placed(inputs: Sequence[Input], at: str) -> list[Input]:
    """Return an input for each place on the sky that is asked for.

    Args:
        inputs: the files.
        at: `RA,Dec` in degrees, for all files; or a .csv file with the columns `ra`, `dec` and,
            for several files, `file`: the name of the file that shows the place, or its path.

    Raises:
        UserError: it is neither, or names a file that is not there.
    """
    if not at.lower().endswith(".csv"):
        place = _place(at.split(","), f"--at {at}")
        return [replace(one, at=place) for one in inputs]
    names: dict[str, Input] = {}
    for one in inputs:
        names |= {one.path.as_posix(): one, one.path.name: one}
    found = []
    for number, row in enumerate(_rows(Path(at)), start=2):
        where = f"--at {printable(at)}, line {number}"
        name = row.get("file") or (inputs[0].path.name if len(inputs) == 1 else "")
        if name not in names:
            raise UserError(
                f"{where}: {printable(name) or 'the column file'} is not one of the images; name "
                "one in the column file"
            )
        found.append(replace(names[name], at=_place([row["ra"], row["dec"]], where)))
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [
                {k.strip().lower(): (v or "").strip() for k, v in row.items() if k}
                for row in csv.DictReader(file, restval="")
            ]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"--at {printable(path)} cannot be read: {error}") from error
    if not rows or not {"ra", "dec"} <= rows[0].keys():
        raise UserError(
            f"--at {printable(path)} needs the columns ra and dec, in degrees, and a row"
        )
    return rows


def _place(words: Sequence[str], where: str) -> Point:
    try:
        ra, dec = (float(word) for word in words)
    except ValueError:
        ra, dec = 0.0, 100.0
    if not (-360 <= ra <= 360 and -90 <= dec <= 90):
        raise UserError(f"{where}: give RA,Dec in degrees, such as 150.1,2.2, or a .csv file")
    return ra, dec
