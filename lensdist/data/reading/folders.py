"""Walk folders, each once, and count skipped files (torch-free)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lensdist.data.manifest import MANIFEST
from lensdist.data.reading.containers import is_container
from lensdist.data.reading.pictures import PICTURES
from lensdist.data.reading.readers import form
from lensdist.utils.errors import UserError
from lensdist.utils.files import printable

_EXAMPLES = 3  # names that are kept of each kind
_KINDS = 20  # number of kinds of other files that are counted separately

Identity = tuple[int, int] | None
"""Device and inode, equal for all names of a folder; None if the folder does not exist."""


class Passed(Counter[str]):
    """The counts of skipped files, by reason, with the first names of each."""

    def __init__(self) -> None:
        super().__init__()
        self.examples: dict[str, list[str]] = {}

    def add(self, why: str, name: str, n: int = 1) -> None:
        """Count `n` files, and keep `name`, relative to the folder that was searched."""
        self[why] += n
        if len(names := self.examples.setdefault(why, [])) < _EXAMPLES:
            names.append(name)

    def other(self, name: str) -> None:
        """Count a file that is not an image, by the end of its name."""
        ending = PurePosixPath(name).suffix.lower()
        why = f"other file type ({ending if ending[1:].isalnum() else 'no suffix'})"
        if why not in self and (len(self) >= _KINDS or len(ending) > 10):
            why = "other file type"
        self.add(why, name)

    def lines(self) -> list[str]:
        """Return a line for each kind: `passed over 2: hidden, e.g. a/.x, b/.y`."""
        return [
            f"passed over {n:,}: {why}, e.g. {printable(', '.join(self.examples[why]))}"
            for why, n in sorted(self.items())
        ]


def walk(
    root: Path, passed: Passed, apart: Identity = None, containers: bool = False
) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder and all below it, as names relative to `root` ("" for it), with image files.

    Args:
        root: the folder.
        passed: counts what is skipped: hidden names, `__MACOSX`, files of other kinds.
        apart: a folder below `root` that is not searched.
        containers: whether .zip and HDF5 files count as files with images.

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
            elif form(name) or (containers and is_container(name)):
                files.append(at)
            else:
                passed.other(at)
        if any(not name.lower().endswith(PICTURES) for name in files):
            for name in [name for name in files if name.lower().endswith(PICTURES)]:
                files.remove(name)  # beside images of other kinds it is a preview
                passed.other(name)
        yield folder, files
        todo += reversed(below)


def entries(folder: Path) -> list[tuple[str, bool]]:
    """Return the names in a folder, sorted, and whether each is a folder.

    Raises:
        UserError: it cannot be listed, so any number of files would be missing.
    """
    try:
        with os.scandir(folder) as found:
            return sorted((entry.name, _is_folder(entry)) for entry in found)
    except OSError as error:
        raise UserError(f"cannot list {printable(folder)}: {error.strerror}") from error


def identity(path: Path) -> Identity:
    """Return the folder's device and inode; see `Identity`."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell folders from files; a link to itself counts as a file, and is refused when read."""
    try:
        return entry.is_dir()
    except OSError:
        return False
