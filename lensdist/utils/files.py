"""Atomic file writes, and JSON that every parser accepts (torch-free)."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lensdist.utils.owners import temporary

_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}


def write_atomic(path: Path, data: str | bytes) -> Path:
    """Write `path` atomically: readers, also after a crash, find the old file or the new one.

    Raises:
        OSError: the disk is full or read-only; the old file is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = temporary(path)
    try:
        with open(beside, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            sync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        # The error of a full disk names no file, and users do not know the hidden one.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        beside.unlink(missing_ok=True)
    fsync(path.parent)
    return path


def append_line(path: Path, line: str, mode: int = 0o600) -> None:
    """Add a line to a file that only its owner writes, and wait until it is on the disk.

    Processes of one machine may append at the same time: each line is written at once. The file
    gets `mode` if it is new.

    Raises:
        OSError: the disk is full or read-only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, mode)
    try:
        # The leading newline ends a line that a killed process may have left unfinished.
        text = f"\n{line}\n".encode()
        if os.write(handle, text) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        sync(handle)
    finally:
        os.close(handle)


def sync(handle: int) -> None:
    """Wait until an open file is on the disk, where the file system supports it.

    Raises:
        OSError: the disk is full, or fails.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    A power cut may undo a rename in a folder that was not synced. Where the file system cannot
    sync a folder, or the folder cannot be opened, this returns at once.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        unable = error.errno in {*_NO_SYNC, errno.EACCES, errno.EPERM, errno.EISDIR}
        if unable and path.is_dir():
            return
        raise
    try:
        sync(handle)
    finally:
        os.close(handle)


def is_private(folder: Path) -> bool:
    """Return whether this user owns a folder and nobody else can write to it.

    Raises:
        OSError: the folder does not exist.
    """
    found = folder.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return mine and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def cache_folder() -> Path | None:
    """Return the user's cache folder of lensdist, made if missing; None if it is not private."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "lensdist"
    try:
        if not folder.is_absolute():
            return None
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder if is_private(folder) else None
    except OSError:
        return None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a regular file in hexadecimal; the file is read in pieces."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would block
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def printable(text: object) -> str:
    r"""Return text from outside, such as a file's name, as one line that a terminal can show.

    Control and bidirectional characters, and bytes that are not UTF-8, are escaped: \x1b, \u202e.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plain(value: Any) -> Any:
    """Convert tensors, arrays, paths and NumPy scalars to JSON's types; NaN and ±inf to None.

    Raises:
        TypeError: JSON has no type for a value.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # tensors, arrays and NumPy scalars, without importing either
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def to_json(value: Any, indent: int | None = 2) -> str:
    """Return `plain(value)` as JSON, without NaN, which Python writes and most parsers refuse."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)
