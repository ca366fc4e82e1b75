"""Find the images of a folder, with their classes, splits and partners (torch-free).

Folders may have these forms, below any further folders:

    {train,val}/{no,sphere,vort}/<int>.npy      classes, split; a `__MACOSX/` twin tree is skipped
    {no_sub,cdm,axion}/{class}_sim_<int>.npy    classes
    {HR,LR}/sample<N>.npy                       pairs, by number
    *.npy                                       images without labels

A file's class is the name of its parent folder, never a match elsewhere in its path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from lensdist.data.manifest import Kind
from lensdist.data.reading.folders import Passed, walk
from lensdist.data.reading.readers import ENDINGS
from lensdist.data.splits import SPLITS
from lensdist.utils.errors import UserError
from lensdist.utils.files import printable

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
    """The file, relative to the source, with forward slashes; in a pair, the LR file."""
    label: int = -1
    split: str | None = None
    """`train`, `val` or `test` if the data sets it; None: to be decided."""
    target: str | None = None
    """The HR file of a pair."""

    @property
    def files(self) -> tuple[str, ...]:
        """The file or, of a pair, both files, LR first."""
        return (self.name,) if self.target is None else (self.name, self.target)


@dataclass
class Listing:
    """All that a folder offers, in an order that does not depend on the file system."""

    root: Path
    kind: Kind = "images"
    labels: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    """Image files outside any class or split folder."""
    skipped: Passed = field(default_factory=Passed)


class _Member(NamedTuple):
    file: str
    split: str | None
    parent: str  # the folder that it lies in, below its split folder; "" for none


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sorting key that puts `sample10` after `sample9`."""
    pieces = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((0, int(p), p) if p[0] in "0123456789" else (1, 0, p) for p in pieces)


def find(root: Path, layout: Layout = "auto", labels: Sequence[str] | None = None) -> Listing:
    """List a folder's images with their classes, splits and partners.

    Args:
        root: the folder.
        layout: the layout to take it for; `auto` finds out.
        labels: the classes in label order; default: the canonical order of known sets, else
            sorted names.

    Raises:
        UserError: nothing to read, a class without images, a partner missing, or folders whose
            meaning is not clear; the message names them.
    """
    listing = Listing(root)
    inside = dict(walk(root, listing.skipped))
    files = [file for names in inside.values() for file in names]
    if not files:
        passed = "; ".join(("", *listing.skipped.lines()))
        raise UserError(f"{printable(root)} holds no image files ({ENDINGS}){passed}")
    empty = sorted(inside.keys() - _with_parents(f for f, names in inside.items() if names))
    for folder in empty:
        listing.skipped.add("folder without images", folder)
    members, has_val = _members(listing, files)
    parents = {member.parent.lower() for member in members if member.parent}
    if layout == "auto":
        pairs = bool(parents) and parents <= {"hr", "lr"}
        layout = "pairs" if pairs else "classes" if parents else "images"
    listing.kind = _KINDS[layout]
    if labels and layout != "classes":
        raise UserError(
            f"--labels goes with class folders, and {printable(root)} is taken for {layout}"
        )
    if layout == "classes":
        _classes(listing, members, empty, labels)
    elif layout == "pairs":
        _pairs(listing, members)
    else:
        listing.entries = [Entry(member.file, split=member.split) for member in members]
    if not has_val:
        # The validation split will be drawn from train, so it is open which samples stay there.
        listing.entries = [
            replace(entry, split=None) if entry.split == "train" else entry
            for entry in listing.entries
        ]
    order = {split: i for i, split in enumerate((None, *SPLITS))}
    listing.entries.sort(key=lambda e: (order[e.split], e.label, natural(e.name), e.name))
    return listing


def _with_parents(folders: Iterable[str]) -> set[str]:
    """Return these folders and all above them, up to the source, ""."""
    found = {""}
    for folder in folders:
        while folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def _members(listing: Listing, files: Sequence[str]) -> tuple[list[_Member], bool]:
    """Return the files with their splits and parent folders, and whether a `val` split came."""
    anchor = _anchor(files)
    paths = [(file, PurePosixPath(file).relative_to(anchor).parts) for file in files]
    split_of = _split_folders(listing.root, {parts[0] for _, parts in paths if len(parts) > 1})
    members = []
    for file, parts in paths:
        split = split_of.get(parts[0])
        inner = parts[1:] if split_of else parts
        if inner:
            members.append(_Member(file, split, inner[-2] if len(inner) > 1 else ""))
        else:
            listing.strays.append(file)
    return members, "val" in split_of.values()


def _anchor(files: Iterable[str]) -> PurePosixPath:
    """Return the folder below which names have a meaning: the common one, but above a class."""
    parents = [str(PurePosixPath(file).parent) for file in files]
    anchor = PurePosixPath(os.path.commonpath(parents))
    return anchor.parent if str(anchor) in parents else anchor


def _split_folders(root: Path, tops: set[str]) -> dict[str, str]:
    """Map folder names to splits. A supplied `val` is the test split, unless `test` came too."""
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
    listing: Listing, members: list[_Member], empty: list[str], labels: Sequence[str] | None
) -> None:
    listing.strays += [member.file for member in members if not member.parent]
    splits = {member.split for member in members}
    members = [member for member in members if member.parent]
    found = {member.parent for member in members}
    if odd := sorted(name for name in found if not name.isprintable()):
        raise UserError(f"{printable(listing.root)}: {odd[0]!a} cannot be the name of a class")
    if labels:
        _check_labels(listing.root, found, labels)
        listing.labels = list(labels)
    else:
        _check_class_folders(listing.root, members, empty)
        listing.labels = _label_order(found)
    for split in splits:
        here = {member.parent for member in members if member.split == split}
        if missing := sorted(set(listing.labels) - here):
            where = f"the {split} split of " if split else ""
            raise UserError(
                f"{where}{printable(listing.root)} has no images of class {missing[0]!r}"
            )
    number = {name: i for i, name in enumerate(listing.labels)}
    listing.entries = [Entry(m.file, number[m.parent], m.split) for m in members]


def _check_labels(root: Path, found: set[str], labels: Sequence[str]) -> None:
    if unknown := sorted(found - set(labels)):
        raise UserError(
            f"{printable(root)} has images in {unknown[0]!r}, which --labels leaves out"
        )


def _check_class_folders(root: Path, members: list[_Member], empty: list[str]) -> None:
    """Check that folders look like classes, where the user has not named the classes."""
    found = {member.parent for member in members}
    if len(found) > _MAX_CLASSES:
        raise UserError(
            f"{printable(root)} has images in {len(found):,} folders, which do not look "
            f"like classes (at most {_MAX_CLASSES:,}): give --layout images, or --labels"
        )
    if confusing := sorted(name for name in found if name.lower() in _SPLIT_NAMES):
        raise UserError(
            f"{printable(root)}: {confusing[0]!r} is where a class should be; put split "
            "folders above class folders, or give --labels"
        )
    beside = {str(PurePosixPath(member.file).parent.parent) for member in members}
    for folder in empty:
        if str(PurePosixPath(folder).parent) in beside:
            raise UserError(
                f"class folder {printable(root / folder)} holds no images; remove it, or "
                "name the classes with --labels"
            )


def _label_order(found: set[str]) -> list[str]:
    for known in _CANONICAL:
        if found <= set(known):
            return [name for name in known if name in found]
    return sorted(found, key=natural)


def _pairs(listing: Listing, members: list[_Member]) -> None:
    root = listing.root
    sides: dict[str, dict[tuple[str | None, int], str]] = {"hr": {}, "lr": {}}
    for file, split, parent in members:
        if parent.lower() not in sides:
            listing.strays.append(file)
            continue
        digits = re.findall(r"[0-9]+", PurePosixPath(file).stem)
        if not digits:
            raise UserError(f"{printable(root / file)} has no number to pair it by")
        other = sides[parent.lower()].setdefault((split, int(digits[-1])), file)
        if other != file:
            raise UserError(
                f"{printable(other)} and {printable(file)} in {printable(root)} have the same "
                "number"
            )
    unmatched = sides["lr"].keys() ^ sides["hr"].keys()
    lone = [side[key] for side in sides.values() for key in unmatched & side.keys()]
    if lone:
        raise UserError(
            f"{len(lone)} of the files in {printable(root)} have no partner of the same "
            f"number: {printable(', '.join(sorted(lone, key=natural)[:3]))}"
        )
    listing.entries = [
        Entry(file, split=key[0], target=sides["hr"][key]) for key, file in sides["lr"].items()
    ]
