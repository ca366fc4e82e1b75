"""Finds the image files that a command line means: files, folders and patterns (torch-free)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from lensdist.data.layouts import is_folder, natural
from lensdist.data.manifest import MANIFEST
from lensdist.data.readers import SUFFIXES
from lensdist.errors import UserError

_MAGIC = frozenset("*?[")
_Identity = tuple[int, int] | None
"""Device and inode: the same for all names of a folder; None: there is no such folder."""
_ENDINGS = ", ".join(SUFFIXES)


@dataclass(frozen=True, slots=True)
class Input:
    """A file to predict for."""

    path: Path
    name: Path
    """Relative to the INPUT folder that it was found in, or to a pattern's part before the first
    wildcard; never with `..`."""


def find(words: Sequence[str], dest: Path) -> list[Input]:
    """The image files that are meant, each once, in the order of `words` and then of their names.

    Args:
        words: files, folders (searched with all below them; hidden names and `__MACOSX` are passed
            over) and patterns with `*`, `?`, `[...]` and `**`.
        dest: where results go. As a folder below another that is searched it is passed over: what
            it holds are earlier results.

    Raises:
        UserError: a word means no file, a named file is of no known type, or a folder cannot be
            listed or is a packed set.
    """
    found: dict[str, Input] = {}
    apart = _identity(dest)
    for word in words:
        inputs = list(_meant(word, apart))
        if not inputs:
            raise UserError(f"{shown(word)} holds no image files: they end in {_ENDINGS}")
        for one in sorted(inputs, key=lambda one: natural(one.name.as_posix())):
            found.setdefault(place(one.path), one)
    return list(found.values())


def place(path: Path) -> str:
    """The same for all ways to a name in a folder. Links to files are files of their own."""
    return f"{_real(os.path.join(os.getcwd(), path.parent))}/{path.name}"


def shown(path: str | Path) -> str:
    """A name for a message: it may hold anything, also what a terminal obeys or cannot encode."""
    name = str(path)
    return name if name.isprintable() and name else ascii(name)


def _meant(word: str, apart: _Identity) -> Iterator[Input]:
    path = Path(word)
    if word and os.path.lexists(path):  # also a file that is really called `a[1].npy`
        if os.path.isdir(path):
            yield from _below(path, path, apart)
        elif _is_image(path.name):
            yield Input(path, Path(path.name))
        else:
            raise UserError(
                f"{shown(word)} is no image file: give files that end in {_ENDINGS}, or their "
                "folder, where others are passed over"
            )
        return
    wild = [bool(_MAGIC & set(part)) for part in path.parts]
    if not any(wild):
        raise UserError(f"{shown(word)} does not exist")
    fixed = wild.index(True)
    base = Path(*path.parts[:fixed])
    matches = list(_matches(base, path.parts[fixed:], apart))
    if not matches:
        raise UserError(f"{shown(word)} matches nothing")
    for match in matches:
        if os.path.isdir(match):
            yield from _below(match, base, apart)
        elif _is_image(match.name):
            yield Input(match, _name(match, base))


def _below(folder: Path, base: Path, apart: _Identity) -> Iterator[Input]:
    """The image files of a folder and all below it."""
    for _, files in _walk(folder, apart):
        yield from (Input(file, _name(file, base)) for file in files)


def _matches(folder: Path, parts: Sequence[str], apart: _Identity) -> Iterator[Path]:
    """What a pattern's parts lead to, as `glob` has it, but each folder of a `**` once only.

    `glob` follows links: two that lead back to their own folder keep it busy for ever.
    """
    if not parts:
        yield folder
        return
    first, rest = parts[0], parts[1:]
    if first == "**":
        for below, files in _walk(folder, apart):
            yield from _matches(below, rest, apart) if rest else files
    elif _MAGIC & set(first):
        for name, is_folder in _entries(folder) if os.path.isdir(folder) else ():
            if not fnmatchcase(name, first) or (_unseen(name) and not first.startswith(".")):
                continue
            if not is_folder or _identity(folder / name) != apart:
                yield from _matches(folder / name, rest, apart)
    elif os.path.lexists(folder / first):
        yield from _matches(folder / first, rest, apart)


def _walk(root: Path, apart: _Identity) -> Iterator[tuple[Path, list[Path]]]:
    """A folder and all below it, with the image files of each."""
    seen = {apart} - {None, _identity(root)}
    todo = [root]
    while todo:
        folder = todo.pop()
        identity = _identity(folder)
        if identity in seen:  # the destination, or a folder that links lead to again
            continue
        seen.add(identity)
        entries = _entries(folder)
        if any(name == MANIFEST for name, _ in entries):
            raise UserError(
                f"{shown(folder)} is a packed set: score it with `lensdist evaluate EXPORT "
                f"--data {shown(folder)}`, or give image files"
            )
        kept = [(folder / name, is_folder) for name, is_folder in entries if not _unseen(name)]
        yield folder, [path for path, is_folder in kept if not is_folder and _is_image(path.name)]
        todo += [path for path, is_folder in reversed(kept) if is_folder]


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """Names in a folder, and whether each is a folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, is_folder(entry)) for entry in entries)
    except OSError as error:
        # Not one bad file: results would have a hole of unknown size.
        raise UserError(f"cannot list {shown(folder)}: {error.strerror}") from error


def _unseen(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _identity(path: Path) -> _Identity:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino


def _name(path: Path, base: Path) -> Path:
    name = path.relative_to(base)
    return Path(path.name) if ".." in name.parts else name


@lru_cache(maxsize=1024)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)
