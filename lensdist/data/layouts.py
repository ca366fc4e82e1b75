"""Finds the images of a folder and says what each one is, as people's folders really look.

    {train,val}/{no,sphere,vort}/<int>.npy      classes, split; a `__MACOSX/` twin tree is skipped
    {no_sub,cdm,axion}/{class}_sim_<int>.npy    classes
    {HR,LR}/sample<N>.npy                       pairs, by number
    *.npy                                       images without labels

Any of these may lie below further folders. A class is a file's parent folder, never a match
elsewhere in its path (torch-free).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from lensdist.data.manifest import MANIFEST, Kind
from lensdist.data.readers import SUFFIXES
from lensdist.data.splits import SPLITS
from lensdist.errors import UserError

Layout = Literal["auto", "classes", "pairs", "images"]
_KINDS: dict[str, Kind] = {"classes": "classify", "pairs": "pairs", "images": "images"}

_CANONICAL = (("no_sub", "cdm", "axion"), ("no", "sphere", "vort"))
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample that a folder offers."""

    name: str
    """Of the file, relative to the source, with forward slashes."""
    label: int = -1
    split: str | None = None
    """`train`, `val` or `test` where the data says so; None: ours to decide."""
    target: str | None = None
    """Of a pair, the HR file's name."""


@dataclass
class Listing:
    """All that a folder offers, in an order that no file system decides."""

    root: Path
    kind: Kind = "images"
    labels: list[str] = field(default_factory=list)
    split: bool = False
    """Whether a test split came with the data."""
    entries: list[Entry] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    """Image files outside any class or split folder."""
    skipped: Counter[str] = field(default_factory=Counter)


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sorting key that puts `sample10` after `sample9`."""
    pieces = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((0, int(p), p) if p[0] in "0123456789" else (1, 0, p) for p in pieces)


def find(root: Path, layout: Layout = "auto", labels: Sequence[str] | None = None) -> Listing:
    """List a folder's images with their classes, splits and partners.

    Args:
        root: the folder.
        layout: `auto`, or what to take it for.
        labels: the classes in label order; default: the canonical order of known sets, else
            sorted names.

    Raises:
        UserError: nothing to read, a class without images, a partner missing, or folders whose
            meaning cannot be told; the message names them.
    """
    listing = Listing(root)
    files, folders = _walk(root, listing.skipped)
    if not files:
        raise UserError(f"{root} holds no image files ({', '.join(SUFFIXES)})")
    anchor = _anchor(files)
    paths = [(file, PurePosixPath(file).relative_to(anchor).parts) for file in files]
    split_of = _split_folders(root, {parts[0] for _, parts in paths if len(parts) > 1})
    listing.split = bool(split_of)

    members: list[tuple[str, str | None, str]] = []  # file, split, parent folder ("" for none)
    for file, parts in paths:
        inner = parts[1:] if split_of else parts
        if inner:
            split = split_of[parts[0]] if split_of else None
            members.append((file, split, inner[-2] if len(inner) > 1 else ""))
        else:
            listing.strays.append(file)
    parents = {parent for _, _, parent in members if parent}
    if layout == "auto":
        pairs = bool(parents) and {p.lower() for p in parents} <= {"hr", "lr"}
        layout = "pairs" if pairs else "classes" if parents else "images"
    listing.kind = _KINDS[layout]

    if layout == "classes":
        _classes(listing, members, folders, labels)
    elif labels:
        raise UserError(f"--labels goes with class folders, and {root} is taken for {layout}")
    elif layout == "pairs":
        _pairs(listing, members)
    else:
        listing.entries = [Entry(file, split=split) for file, split, _ in members]
    if listing.split and "val" not in split_of.values():
        # The validation split is ours to draw from train, so who stays in train is open.
        listing.entries = [
            replace(entry, split=None) if entry.split == "train" else entry
            for entry in listing.entries
        ]
    order = {split: i for i, split in enumerate((None, *SPLITS))}
    listing.entries.sort(key=lambda e: (order[e.split], e.label, natural(e.name), e.name))
    return listing


def _walk(root: Path, skipped: Counter[str]) -> tuple[list[str], list[str]]:
    """Image files and folders below `root`, as relative names; what is passed over is counted."""
    files: list[str] = []
    folders: list[str] = []
    seen: set[tuple[int, int]] = set()
    todo = [""]
    while todo:
        folder = todo.pop()
        try:
            about = os.stat(root / folder)
            if (about.st_dev, about.st_ino) in seen:
                skipped["folder linked twice"] += 1
                continue
            seen.add((about.st_dev, about.st_ino))
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            # A class that cannot be listed is not one bad file: the set would have a hole.
            raise UserError(f"cannot list {root / folder}: {error.strerror}") from error
        if any(entry.name == MANIFEST for entry in entries):
            raise UserError(f"{root / folder} is a packed set already")
        folders.append(folder)
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name == "__MACOSX":
                skipped["__MACOSX"] += sum(len(names) for _, _, names in os.walk(root / name))
            elif entry.name.startswith("."):
                skipped["hidden"] += 1
            elif is_folder(entry):
                todo.append(name)
            elif entry.name.lower().endswith(SUFFIXES):
                files.append(name)
            else:
                skipped["other file type"] += 1
    return files, folders


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one; a link to itself is not, and as a file it is refused with the reason."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _anchor(files: Iterable[str]) -> PurePosixPath:
    """The folder below which names mean something: what all files share, but for a lone class."""
    parents = [str(PurePosixPath(file).parent) for file in files]
    anchor = PurePosixPath(os.path.commonpath(parents))
    return anchor.parent if str(anchor) in parents else anchor


def _split_folders(root: Path, tops: set[str]) -> dict[str, str]:
    """Folder name -> split. A supplied `val` is the test split, unless a test split came too."""
    split_of = {top: _SPLIT_NAMES[top.lower()] for top in tops if top.lower() in _SPLIT_NAMES}
    if "train" not in split_of.values() or len(split_of) < 2:
        return {}
    if others := sorted(tops - set(split_of)):
        raise UserError(f"{root} has images in {others[0]!r} beside its train and test folders")
    if len(set(split_of.values())) < len(split_of):
        raise UserError(f"{root} has two folders for one split: {', '.join(sorted(split_of))}")
    if "test" in split_of.values():
        return split_of
    return {top: "test" if split == "val" else split for top, split in split_of.items()}


def _classes(
    listing: Listing,
    members: list[tuple[str, str | None, str]],
    folders: list[str],
    labels: Sequence[str] | None,
) -> None:
    listing.strays += [file for file, _, parent in members if not parent]
    found = {parent for _, _, parent in members if parent}
    listing.labels = list(labels) if labels else _label_order(found)
    if labels and (unknown := sorted(found - set(labels))):
        raise UserError(f"{listing.root} has images in {unknown[0]!r}, which --labels leaves out")
    if odd := sorted(c for c in found if not c.isprintable()):
        raise UserError(f"{listing.root}: {odd[0]!a} cannot be the name of a class")
    if not labels and (confusing := sorted(c for c in found if c.lower() in _SPLIT_NAMES)):
        raise UserError(
            f"{listing.root}: {confusing[0]!r} is where a class should be; put split folders "
            "above class folders, or give --labels"
        )
    homes = {str(PurePosixPath(file).parent) for file, _, parent in members if parent}
    beside = {str(PurePosixPath(home).parent) for home in homes}
    for folder in folders:
        leaf = not any(home == folder or home.startswith(f"{folder}/") for home in homes)
        if leaf and not labels and folder and str(PurePosixPath(folder).parent) in beside:
            raise UserError(
                f"class folder {listing.root / folder} holds no images; remove it, or name the "
                "classes with --labels"
            )
    for split in {split for _, split, _ in members}:
        missing = set(listing.labels) - {parent for _, s, parent in members if s == split}
        if missing:
            where = f"the {split} split of {listing.root}" if split else listing.root
            raise UserError(f"{where} has no images of class {sorted(missing)[0]!r}")
    number = {name: i for i, name in enumerate(listing.labels)}
    listing.entries = [
        Entry(file, number[parent], split) for file, split, parent in members if parent
    ]


def _label_order(found: set[str]) -> list[str]:
    for known in _CANONICAL:
        if found <= set(known):
            return [name for name in known if name in found]
    return sorted(found, key=natural)


def _pairs(listing: Listing, members: list[tuple[str, str | None, str]]) -> None:
    sides: dict[str, dict[tuple[str | None, int], str]] = {"hr": {}, "lr": {}}
    for file, split, parent in members:
        if parent.lower() not in sides:
            listing.strays.append(file)
            continue
        digits = re.findall(r"[0-9]+", PurePosixPath(file).stem)
        if not digits:
            raise UserError(f"{listing.root / file} has no number to pair it by")
        key = (split, int(digits[-1]))
        other = sides[parent.lower()].setdefault(key, file)
        if other != file:
            raise UserError(f"{other} and {file} in {listing.root} have the same number")
    unmatched = sides["lr"].keys() ^ sides["hr"].keys()
    lone = [side[key] for side in sides.values() for key in unmatched & side.keys()]
    if lone:
        raise UserError(
            f"{len(lone)} of the files in {listing.root} have no partner of the same number: "
            f"{', '.join(sorted(lone, key=natural)[:3])}"
        )
    listing.entries = [
        Entry(file, split=key[0], target=sides["hr"][key]) for key, file in sides["lr"].items()
    ]
