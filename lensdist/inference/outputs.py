"""Paths of results, and checks that no file is lost (torch-free)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from lensdist.data.reading.readers import form as form_of
from lensdist.inference.inputs import Input
from lensdist.utils.errors import UserError
from lensdist.utils.files import printable

Format = Literal["auto", "npy", "fits"]
TABLES = (".csv", ".parquet")
_FITS = (".fits", ".fit", ".fts")


def table_for(dest: Path) -> None:
    """Check that `dest` names a table.

    Raises:
        UserError: it does not.
    """
    if dest.suffix.lower() not in TABLES:
        raise UserError(
            f"--out {printable(dest)}: this model writes a table; give a name that ends in "
            f"{' or '.join(TABLES)}"
        )


def images_for(
    inputs: Sequence[Input], folder: Path, form: Format, sigma: bool
) -> dict[Input, Path]:
    """Return the output path of each input; inputs that are not images by name have none.

    With `sigma`, the name of the uncertainties beside each .npy is reserved as well.

    Raises:
        UserError: two inputs would share a file, or `folder` is a file or looks like one.
    """
    if (folder.suffix.lower() in TABLES and not folder.is_dir()) or folder.is_file():
        raise UserError(f"--out {printable(folder)}: this model writes images; give a folder")
    named = {one: _named(one.name, form) for one in inputs}
    found = {one: folder / name for one, name in named.items() if name is not None}
    first: dict[Path, Input] = {}
    for one, path in found.items():
        for reserved in (path, sigma_beside(path)) if sigma else (path,):
            other = first.setdefault(reserved, one)
            if other is not one:
                raise UserError(
                    f"{printable(other.path)} and {printable(one.path)} would both be written to "
                    f"{printable(reserved)}; give the folder above both, or predict one at a time"
                )
    return found


def is_fits(path: Path) -> bool:
    """Return whether a file's name is that of a FITS file."""
    return path.suffix.lower() in _FITS


def sigma_beside(image: Path) -> Path:
    """Return the path of an image's uncertainties; a FITS file holds them itself."""
    return image if is_fits(image) else image.with_suffix(".sigma.npy")


def refuse_losses(outputs: Iterable[Path], inputs: Sequence[Input], overwrite: bool) -> None:
    """Check that no existing file would be lost.

    Raises:
        UserError: an output is an input, or a folder; or it exists, and `overwrite` is off.
    """
    standing = [path for path in outputs if os.path.lexists(path)]
    given: Mapping[tuple[int, int], Input] = {}
    if standing:
        files = {one.container or one.path: one for one in inputs}
        given = {_identity(file): one for file, one in files.items() if os.path.exists(file)}
    for path in standing:
        if os.path.exists(path) and (one := given.get(_identity(path))):
            raise UserError(
                f"{printable(path)} would replace the input {printable(one.path)}; write elsewhere"
            )
        if os.path.isdir(path):
            raise UserError(f"{printable(path)} is a folder; remove it, or write elsewhere")
        if not overwrite:
            raise UserError(f"{printable(path)} exists; write elsewhere, or give --overwrite")


def _identity(path: Path) -> tuple[int, int]:
    about = os.stat(path)
    return about.st_dev, about.st_ino


def _named(name: Path, form: Format) -> Path | None:
    parts = form_of(name.name)
    if parts is None:
        return None
    stem, suffix = parts
    if form == "fits" or (form == "auto" and suffix in _FITS):
        return name if is_fits(name) else name.with_name(f"{stem}.fits")
    return name if name.suffix.lower() == ".npy" else name.with_name(f"{stem}.npy")
