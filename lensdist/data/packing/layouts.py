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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from lensdist.data.manifest import Kind
from lensdist.data.packing.report import Passed
from lensdist.data.reading.folders import walk
from lensdist.data.reading.readers import ENDINGS
from lensdist.data.splits import SPLITS
from lensdist.errors import UserError
from lensdist.files import printable

Layout = Literal["auto", "classes", "pairs", "images"]
_KINDS: dict[str, Kind] = {"classes": "classify", "pairs": "pairs", "images": "images"}

_MAX_CLASSES = 1000
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
    skipped: Passed = field(default_factory=Passed)


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
    inside = dict(walk(root, listing.skipped))
    files = [file for names in inside.values() for file in names]
    if not files:
        passed = "; ".join(("", *listing.skipped.lines()))
        raise UserError(f"{printable(root)} holds no image files ({ENDINGS}){passed}")
    homes = _with_parents(folder for folder, names in inside.items() if names)
    empty = sorted(inside.keys() - homes)
    for folder in empty:
        listing.skipped.add("folder without images", folder)
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
        _classes(listing, members, empty, labels)
    elif labels:
        raise UserError(
            f"--labels goes with class folders, and {printable(root)} is taken for {layout}"
        )
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


def _with_parents(folders: Iterable[str]) -> set[str]:
    """These folders and all above them, up to the source, ""."""
    found = {""}
    for folder in folders:
        while folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


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
        raise UserError(
            f"{printable(root)} has images in {others[0]!r} beside its train and test folders"
        )
    if len(set(split_of.values())) < len(split_of):
        raise UserError(
            f"{printable(root)} has two folders for one split: {', '.join(sorted(split_of))}"
        )
    if "test" in split_of.values():
        return split_of
    return {top: "test" if split == "val" else split for top, split in split_of.items()}


def _classes(
    listing: Listing,
    members: list[tuple[str, str | None, str]],
    empty: list[str],
    labels: Sequence[str] | None,
) -> None:
    listing.strays += [file for file, _, parent in members if not parent]
    found = {parent for _, _, parent in members if parent}
    if not labels and len(found) > _MAX_CLASSES:
        raise UserError(
            f"{printable(listing.root)} has images in {len(found):,} folders, which do not look "
            f"like classes (at most {_MAX_CLASSES:,}): give --layout images, or --labels"
        )
    listing.labels = list(labels) if labels else _label_order(found)
    if labels and (unknown := sorted(found - set(labels))):
        raise UserError(
            f"{printable(listing.root)} has images in {unknown[0]!r}, which --labels leaves out"
        )
    if odd := sorted(c for c in found if not c.isprintable()):
        raise UserError(f"{printable(listing.root)}: {odd[0]!a} cannot be the name of a class")
    if not labels and (confusing := sorted(c for c in found if c.lower() in _SPLIT_NAMES)):
        raise UserError(
            f"{printable(listing.root)}: {confusing[0]!r} is where a class should be; put split "
            "folders above class folders, or give --labels"
        )
    beside = {str(PurePosixPath(file).parent.parent) for file, _, parent in members if parent}
    for folder in () if labels else empty:
        if str(PurePosixPath(folder).parent) in beside:
            raise UserError(
                f"class folder {printable(listing.root / folder)} holds no images; remove it, or "
                "name the classes with --labels"
            )
    for split in {split for _, split, _ in members}:
        missing = set(listing.labels) - {parent for _, s, parent in members if s == split}
        if missing:
            where = (
                f"the {split} split of {printable(listing.root)}"
                if split
                else printable(listing.root)
            )
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
            raise UserError(f"{printable(listing.root / file)} has no number to pair it by")
        key = (split, int(digits[-1]))
        other = sides[parent.lower()].setdefault(key, file)
        if other != file:
            raise UserError(
                f"{printable(other)} and {printable(file)} in {printable(listing.root)} have the "
                "same number"
            )
    unmatched = sides["lr"].keys() ^ sides["hr"].keys()
    lone = [side[key] for side in sides.values() for key in unmatched & side.keys()]
    if lone:
        raise UserError(
            f"{len(lone)} of the files in {printable(listing.root)} have no partner of the same "
            f"number: {printable(', '.join(sorted(lone, key=natural)[:3]))}"
        )
    listing.entries = [
        Entry(file, split=key[0], target=sides["hr"][key]) for key, file in sides["lr"].items()
    ]
