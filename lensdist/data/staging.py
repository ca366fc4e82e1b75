"""A folder that appears whole or not at all (torch-free)."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from lensdist.errors import UserError
from lensdist.files import fsync


class Staging:
    """A hidden folder beside `dest` to write into; `publish` gives it its name.

    Raises:
        UserError: `dest` holds something already, or its parent cannot be written.
    """

    def __init__(self, dest: str | os.PathLike[str]) -> None:
        self.dest = Path(dest).resolve()  # a link to an empty folder is filled, not replaced
        check_free(self.dest)
        self.folder = self.dest.with_name(f".{self.dest.name}.{secrets.token_hex(4)}.partial")
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot write beside {self.dest}: {error.strerror}") from error

    def publish(self) -> None:
        """Put every byte on the disk, then rename: a crash before that leaves no `dest`.

        Raises:
            UserError: somebody made `dest` meanwhile.
            OSError: the disk is full.
        """
        for path in self.folder.iterdir():
            fsync(path)
        fsync(self.folder)
        check_free(self.dest)
        self.folder.rename(self.dest)
        fsync(self.dest.parent)

    def discard(self) -> None:
        """Remove what was not published."""
        shutil.rmtree(self.folder, ignore_errors=True)


def check_free(dest: Path) -> None:
    """Refuse a destination that holds anything: files of a user are never touched.

    Raises:
        UserError: `dest` is a file, or a folder with something in it.
    """
    try:
        free = not os.path.lexists(dest) or (dest.is_dir() and not any(dest.iterdir()))
    except OSError as error:
        raise UserError(f"cannot look into {dest}: {error.strerror}") from error
    if not free:
        raise UserError(f"{dest} exists already: choose another destination, or remove it first")


def leftovers(dest: Path) -> list[Path]:
    """Folders that killed writers of `dest` left behind."""
    return sorted(dest.resolve().parent.glob(f".{dest.name}.*.partial"))
