"""Search for the images of a command line: files, folders, patterns, stacks and archives
(torch-free)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePosixPath

from lensdist.data.packing.beside import bands_of, maps_of
from lensdist.data.packing.listing import natural
from lensdist.data.packing.split_names import plain
from lensdist.data.packing.stacks import StackAxes, expanded
from lensdist.data.reading import containers
from lensdist.data.reading.folders import Identity, Passed, entries, identity, walk
from lensdist.data.reading.readers import ENDINGS, form
from lensdist.data.reading.roles import Role
from lensdist.utils.errors import UserError
from lensdist.utils.files import printable

_MAGIC = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Input:
    """An image to predict for."""

    path: Path
    """The file; an image in a stack or an archive has the path of a file below it, as `pack` names
    it: `no.npy/17`."""
    name: Path
    """The path below the INPUT folder, or below a pattern's part before the first wildcard; it
    never contains `..`. An image in a file has the name of an image file: `no/17.npy`."""
    container: Path | None = None
    """The file that the image is in, with others."""
    refused: str = ""
    """Why no image of a container can be read."""
    more: tuple[Path, ...] = ()
    """The files of further bands."""
    maps: tuple[tuple[int, Role, Path], ...] = ()
    """The maps beside the image: number of the band, role and file."""
    at: tuple[float, float] | None = None
    """RA and Dec of the place to cut out, degrees; None: the image's middle."""


def find(
    words: Sequence[str],
    dest: Path,
    passed: Passed | None = None,
    axes: StackAxes | None = None,
    chosen: str | None = None,
) -> list[Input]:
    """Find the images that words name, each once, in the order of `words` and then of their names.

    All matches of a pattern are returned, also files that are not images.

    Args:
        words: files, folders with their subfolders (hidden names, `__MACOSX` and files of other
            kinds are skipped), and patterns with `*`, `?`, `[...]` and `**`.
        dest: the destination of results; inside a searched folder it is skipped, because it holds
            earlier results.
        passed: counts what is skipped in folders, and arrays that are not images.
        axes: see `stacks.expanded`.
        chosen: see `stacks.expanded`.

    Raises:
        UserError: a word names no image file, a file has an unknown type, a folder cannot be
            listed or is a packed set, or it is not clear which arrays of a file are its images.
    """
    found: dict[str, Input] = {}
    passed = Passed() if passed is None else passed
    apart = identity(dest)
    for word in words:
        inputs = list(_meant(word, apart, passed))
        if not any(_is_image(one) for one in inputs):
            raise UserError(f"{printable(word)} holds no image files: {_ends(passed)}")
        for one in sorted(inputs, key=lambda one: natural(one.name.as_posix())):
            found.setdefault(place(one.path), one)
    opened = _opened(found.values(), passed, axes, chosen)
    if not opened:
        raise UserError(f"{printable(words[0])} holds no images: {_ends(passed)}")
    return opened


def _ends(passed: Passed) -> str:
    return "; ".join((f"they end in {ENDINGS}, .h5 or .zip", *passed.lines()))


def _opened(
    inputs: Iterable[Input], passed: Passed, axes: StackAxes | None, chosen: str | None
) -> list[Input]:
    """Put the images of stacks and archives in the place of their files."""
    inputs = list(inputs)
    files = {one.path.as_posix(): one for one in inputs if _is_image(one) and not one.container}
    found = expanded(Path(), list(files), passed, axes, chosen, labelled=False)
    inside: defaultdict[str, list[str]] = defaultdict(list)
    for name in found.files:
        above = chain((name,), map(str, PurePosixPath(name).parents))
        inside[next(each for each in above if each in files)].append(name)
    why = dict(found.refused)
    opened = []
    for one in inputs:
        file = one.path.as_posix()
        if file not in files or inside[file] == [file]:
            opened.append(one)
        elif file in why:
            opened.append(replace(one, refused=why[file]))
        for name in sorted(inside[file], key=natural) if inside[file] != [file] else ():
            maps = tuple((0, role, Path(of)) for role, of in found.maps.get(name, ()))
            opened.append(replace(_within(one, name), maps=maps))
    return opened


def _within(file: Input, path: str) -> Input:
    """Return an image in a file, with the name of an image file."""
    parts = plain((*file.name.parts, *PurePosixPath(path).relative_to(file.path).parts))
    name = Path(*parts)
    if form(name.name) is None:
        name = name.with_name(f"{name.name}.npy")
    return Input(Path(path), name, file.path)


def _is_image(one: Input) -> bool:
    name = one.path.name
    return bool(one.container or form(name) or containers.is_container(name))


def together(
    inputs: Sequence[Input], bands: Sequence[str], passed: Passed
) -> tuple[list[Input], bool]:
    """Join files that make one image: those of several bands, and the maps beside an image.

    Args:
        inputs: the files that `find` found.
        bands: the names of the bands, in their order; see `bands_of`.
        passed: counts files of other bands, and maps and bands whose image is not there.

    Returns:
        The images, and whether names of files tell bands apart.

    Raises:
        UserError: see `bands_of`.
    """
    of = {one.path.as_posix(): one for one in inputs}
    images = [name for name, one in of.items() if _is_image(one)]
    known = {
        name: tuple((role, file.as_posix()) for _, role, file in one.maps)
        for name, one in of.items()
    }
    maps, lone = maps_of(images, known)
    found = bands_of(list(maps), bands)
    for name in lone:
        passed.add("it is a map of an image that is not there", name)
    for name in found.other:
        passed.add("its name has none of the chosen bands", name)
    for name, why in found.refused:
        passed.add(why, name)
    joined = [
        replace(
            one,
            more=tuple(map(Path, found.samples[name][1:])),
            maps=tuple(
                (i, role, Path(file))
                for i, band in enumerate(found.samples[name])
                for role, file in maps[band]
            ),
        )
        if name in found.samples
        else one
        for name, one in of.items()
        if name in found.samples or name not in images
    ]
    return joined, found.by_name


def place(path: Path) -> str:
    """Return one string for all paths to a file name; a link to a file is a separate file."""
    return f"{_real(os.path.join(os.getcwd(), path.parent))}/{path.name}"


def _meant(word: str, apart: Identity, passed: Passed) -> Iterator[Input]:
    path = Path(word)
    if word and os.path.lexists(path):  # before patterns: a file may be named `a[1].npy`
        if os.path.isdir(path):
            yield from _below(path, path, apart, passed)
        elif form(path.name) or containers.is_container(path.name):
            yield Input(path, Path(path.name))
        else:
            raise UserError(
                f"{printable(word)} is not an image file: give files that end in {ENDINGS}, or "
                "their folder, where others are skipped"
            )
        return
    wild = [bool(_MAGIC & set(part)) for part in path.parts]
    if not any(wild):
        if packed := containers.inside(path):
            yield _within(Input(packed[0], Path(packed[0].name)), word)
            return
        raise UserError(f"{printable(word) or repr(word)} does not exist")
    fixed = wild.index(True)
    base = Path(*path.parts[:fixed])
    matches = list(_matches(base, path.parts[fixed:], apart, passed))
    if not matches:
        raise UserError(f"{printable(word)} matches nothing")
    for match in matches:
        if os.path.isdir(match):
            yield from _below(match, base, apart, passed)
        else:
            yield Input(match, _name(match, base))


def _below(folder: Path, base: Path, apart: Identity, passed: Passed) -> Iterator[Input]:
    """Yield the image files of a folder and its subfolders."""
    for _, files in walk(folder, passed, apart, containers=True):
        yield from (Input(folder / file, _name(folder / file, base)) for file in files)


def _matches(folder: Path, parts: Sequence[str], apart: Identity, passed: Passed) -> Iterator[Path]:
    """Yield the matches of a pattern's parts as `glob` does, but enter each folder of `**` once.

    `glob` follows links: links that lead back to their own folder keep it in a loop.
    """
    if not parts:
        yield folder
        return
    first, rest = parts[0], parts[1:]
    if first == "**":
        # If more parts follow, they decide which files match.
        for below, files in walk(folder, Passed() if rest else passed, apart, containers=True):
            if rest:
                yield from _matches(folder / below, rest, apart, passed)
            else:
                yield from (folder / file for file in files)
    elif _MAGIC & set(first):
        for name, is_folder in entries(folder) if os.path.isdir(folder) else ():
            hidden = name.startswith(".") and not first.startswith(".")
            if hidden or name == "__MACOSX" or not fnmatchcase(name, first):
                continue
            if is_folder and identity(folder / name) == apart:
                passed.add("earlier results", name)
            else:
                yield from _matches(folder / name, rest, apart, passed)
    elif os.path.lexists(folder / first):
        yield from _matches(folder / first, rest, apart, passed)


def _name(path: Path, base: Path) -> Path:
    name = path.relative_to(base)
    return Path(path.name) if ".." in name.parts else name


@lru_cache(maxsize=1024)
def _real(folder: str) -> str:
    return os.path.realpath(folder)
