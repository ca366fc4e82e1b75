"""Atomic writes of folders, and checks that no file of a user is replaced (torch-free)."""

from __future__ import annotations

import glob
import logging
import os
import time
from pathlib import Path

from lensdist.utils.errors import UserError
from lensdist.utils.files import fsync
from lensdist.utils.owners import leftovers, owner_of, remove, sweep, temporary
from lensdist.utils.sealed import read_json

log = logging.getLogger(__name__)

_BEFORE = ".before-"  # what was set aside is called `NAME.before-TIME`


class Staging:
    """A hidden folder beside `dest` to write into; `publish` renames it to `dest`.

    Raises:
        UserError: `dest` holds something already, or its parent cannot be written.
    """

    def __init__(self, dest: str | os.PathLike[str]) -> None:
        self.dest = Path(os.path.realpath(dest))  # `dest` may be a link to an empty folder
        check_free(self.dest)
        sweep(self.dest.parent)
        self.folder = temporary(self.dest)
        for left in leftovers(self.dest):
            who = owner_of(left.name) or "a killed process"
            log.warning("%s: left by %s; remove it, unless that is still running", left, who)
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot write beside {self.dest}: {error.strerror}") from error

    def publish(self) -> None:
        """Sync every file to the disk, then rename: a crash before that leaves no `dest`.

        Raises:
            UserError: `dest` was created in the meantime.
            OSError: the disk is full.
        """
        for path in self.folder.iterdir():
            fsync(path)
        fsync(self.folder)
        check_free(self.dest)
        self.folder.rename(self.dest)
        fsync(self.dest.parent)

    def discard(self) -> None:
        """Remove the folder unless it was published."""
        remove(self.folder)


def check_free(dest: Path) -> None:
    """Check that a destination does not exist, or is an empty folder.

    Raises:
        UserError: `dest` is a file, or a folder that is not empty.
    """
    try:
        free = not _stands(dest) or (dest.is_dir() and not any(dest.iterdir()))
    except OSError as error:
        raise UserError(f"cannot look into {dest}: {error.strerror}") from error
    if not free:
        raise UserError(f"{dest} exists already: choose another destination, or remove it first")


def check_ours(path: Path, *keys: str, flag: str = "--out", beside: tuple[Path, ...] = ()) -> None:
    """Check that results can be written without replacing a file of the user.

    `path` is a JSON file that holds `keys` if this command wrote it, and `beside` are files that it
    writes with it. None need exist. If `path` was set aside, it still tells whose the others are.
    `flag` is the option that sets another path.

    Raises:
        UserError: a file was not written by this command, or the folder is not writable.
    """
    check_writable(path.parent)
    standing = [one for one in (path, *beside) if os.path.lexists(one)]
    aside = path.parent.glob(f"{glob.escape(path.name + _BEFORE)}*")
    written = path if os.path.lexists(path) else max(aside, default=path)
    try:
        found = read_json(written) if standing else {}
    except (OSError, ValueError):
        found = {}
    if standing and not found.keys() >= {*keys}:
        raise UserError(
            f"{standing[0]} was not written by this command and would be replaced; give another "
            f"{flag}, or move it away"
        )


def set_aside(path: Path) -> Path:
    """Rename an outdated file or folder, which is never deleted; return its new path."""
    kept = path.with_name(f"{path.name}{_BEFORE}{time.strftime('%Y%m%d-%H%M%S')}")
    while os.path.lexists(kept):  # renamed in the same second, or before a clock was set back
        kept = kept.with_name(f"{kept.name}+")
    path.rename(kept)
    return kept


def check_writable(folder: Path) -> None:
    """Check that a folder can be written to, before the work begins.

    Raises:
        UserError: it, or the nearest existing parent, is not a folder or not writable.
    """
    try:
        place = next(p for p in (folder, *folder.absolute().parents) if _stands(p))
        if not place.is_dir():
            raise UserError(f"cannot write to {folder}: {place} is not a folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(
                f"cannot write to {folder}: no permission in {place}; give another path"
            )
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error


def _stands(path: Path) -> bool:
    """Return whether a file or folder of this name exists; raise OSError if none can."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
