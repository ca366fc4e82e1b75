"""Walks folders, each once, and keeps account of what it passes over (torch-free)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lensdist.data.manifest import MANIFEST
from lensdist.data.packing.report import Passed
from lensdist.data.reading.readers import form
from lensdist.errors import UserError
from lensdist.files import printable

Identity = tuple[int, int] | None
"""Device and inode: the same for all names of a folder; None: there is no such folder."""


def walk(root: Path, passed: Passed, apart: Identity = None) -> Iterator[tuple[str, list[str]]]:
    """A folder and all below it, as names relative to `root` ("" for it), with its image files.

    Args:
        root: the folder.
        passed: counts what is passed over: hidden names, `__MACOSX`, files of other kinds.
        apart: a folder below `root` that is not searched.

    Raises:
        UserError: a folder cannot be listed, or is a packed set.
    """
    seen: set[Identity] = set()
    todo = [""]
    while todo:
        folder = todo.pop()
        here = identity(root / folder)
        if folder and (here == apart or here in seen):
            passed.add("earlier results" if here == apart else "folder linked twice", folder)
            continue
        seen.add(here)
        files, below = [], []
        for name, is_folder in entries(root / folder):
            at = f"{folder}/{name}" if folder else name
            if name == MANIFEST:
                raise UserError(
                    f"{printable(root / folder)} is a packed set already: train on it with "
                    "data.path=PATH, score a model with `lensdist evaluate EXPORT --data PATH`, or "
                    "give image files"
                )
            if name == "__MACOSX":
                passed.add(name, at, sum(len(names) for _, _, names in os.walk(root / at)))
            elif name.startswith("."):
                passed.add("hidden", at)
            elif is_folder:
                below.append(at)
            elif form(name):
                files.append(at)
            else:
                passed.other(at)
        yield folder, files
        todo += reversed(below)


def entries(folder: Path) -> list[tuple[str, bool]]:
    """Names in a folder, sorted, and whether each is a folder.

    Raises:
        UserError: it cannot be listed: not one file would be missing, but any number of them.
    """
    try:
        with os.scandir(folder) as found:
            return sorted((entry.name, _is_folder(entry)) for entry in found)
    except OSError as error:
        raise UserError(f"cannot list {printable(folder)}: {error.strerror}") from error


def identity(path: Path) -> Identity:
    """See `Identity`."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one; a link to itself is not, and as a file it is refused with the reason."""
    try:
        return entry.is_dir()
    except OSError:
        return False
