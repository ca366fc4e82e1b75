"""Find the images of a folder, with their classes, splits and partners (torch-free).

Folders may have these forms, below any further folders:

    {train,val}/{no,sphere,vort}/<int>.npy      classes, split; a `__MACOSX/` twin tree is skipped
    {train,test}_{lenses,nonlenses}/*.npy       classes, split
    {no_sub,cdm,axion}/{class}_sim_<int>.npy    classes
    lenses/NAME/*_{g,r,i}.fits                  classes, systems, bands
    {HR,LR}/sample<N>.npy                       pairs, by number
    *.npy                                       images without labels

A file's class is the name of its parent folder, never a match elsewhere in its path; with
`group_by: folder` it is the folder above those of the systems.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from lensdist.data.manifest import Kind
from lensdist.data.packing.beside import bands_of, maps_of
from lensdist.data.packing.split_names import Member, Splits, members
from lensdist.data.reading.folders import Passed, walk
from lensdist.data.reading.readers import ENDINGS
from lensdist.data.reading.roles import Role
from lensdist.data.splits import SPLITS
from lensdist.utils.errors import UserError
from lensdist.utils.files import printable

Layout = Literal["auto", "classes", "pairs", "images"]
_KINDS: dict[str, Kind] = {"classes": "classify", "pairs": "pairs", "images": "images"}

_MAX_CLASSES = 1000
_CANONICAL = (("no_sub", "cdm", "axion"), ("no", "sphere", "vort"))


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
    group: str = ""
    """The system that it shows; images of one system are in one split. Empty: its own."""
    more: tuple[str, ...] = ()
    """The files of further bands."""
    maps: tuple[tuple[int, Role, str], ...] = ()
    """The maps beside the image: number of the band, role and file."""

    @property
    def bands(self) -> tuple[str, ...]:
        """The files of the image, one for each band."""
        return (self.name, *self.more)

    @property
    def files(self) -> tuple[str, ...]:
        """All files: bands, the HR file of a pair, and maps."""
        hr = () if self.target is None else (self.target,)
        return (*self.bands, *hr, *dict.fromkeys(file for _, _, file in self.maps))


@dataclass
class Listing:
    """All that a folder offers, in an order that does not depend on the file system."""

    root: Path
    kind: Kind = "images"
    labels: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Image files that are left out, and why."""
    skipped: Passed = field(default_factory=Passed)
    bands_by_name: bool = False
    """Whether each band is a file; else bands are inside of each file."""


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sorting key that puts `sample10` after `sample9`."""
    pieces = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((0, int(p), p) if p[0] in "0123456789" else (1, 0, p) for p in pieces)


def find(
    root: Path,
    layout: Layout = "auto",
    labels: Sequence[str] | None = None,
    *,
    splits: Splits = None,
    group_by: str | None = None,
    bands: Sequence[str] = (),
) -> Listing:
    """List a folder's images with their classes, splits, partners and maps.

    Args:
        root: the folder.
        layout: the layout to take it for; `auto` finds out.
        labels: the classes in label order; default: the canonical order of known sets, else
            sorted names.
        splits: see `split_names.Splits`.
        group_by: what images of one system share: `folder`, or a regular expression of which the
            first group, or all that it matches of a file's path, names the system.
        bands: names of the bands of an image, in their order; see `beside.bands_of`.

    Raises:
        UserError: nothing to read, a class without images, a partner missing, or names whose
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
    maps, lone = maps_of(files)
    listing.refused += [(file, "it is a map of an image that is not there") for file in lone]
    of_bands = bands_of(list(maps), bands)
    listing.bands_by_name, together = of_bands.by_name, of_bands.samples
    listing.refused += of_bands.refused
    for file in of_bands.other:
        listing.skipped.add("its name has none of the chosen bands", file)
        for _, below in maps[file]:
            listing.skipped.add("it is a map of an image that is not chosen", below)
    if not together:
        raise UserError(f"{printable(root)}: no image has all bands of --bands {','.join(bands)}")
    found = members(list(together), str(_anchor(together)), splits)
    if group_by == "folder":
        found = _without_inner(found)
    parents = {member.folders[-1].lower() for member in found if member.folders}
    if layout == "auto":
        pairs = bool(parents) and parents <= {"hr", "lr"}
        classes = bool(parents) and not (group_by == "folder" and _depth(found) == 1)
        layout = "pairs" if pairs else "classes" if classes else "images"
    listing.kind = _KINDS[layout]
    if labels and layout != "classes":
        raise UserError(
            f"--labels goes with class folders, and {printable(root)} is taken for {layout}"
        )
    if layout == "classes":
        _classes(listing, found, empty, labels, group_by)
    elif layout == "pairs":
        _pairs(listing, found)
    else:
        listing.entries = [Entry(member.file, split=member.split) for member in found]
    systems = {member.file: _system(member, group_by) for member in found}
    supplied = _supplied({member.split for member in found}, splits)
    listing.entries = [
        replace(
            entry,
            split=supplied[entry.split],
            group=systems[entry.name],
            more=together[entry.name][1:],
            maps=tuple(
                (i, *one) for i, file in enumerate(together[entry.name]) for one in maps[file]
            ),
        )
        for entry in listing.entries
    ]
    order = {split: i for i, split in enumerate((None, *SPLITS))}
    listing.entries.sort(key=lambda e: (order[e.split], e.label, natural(e.name), e.name))
    return listing


def _supplied(found: set[str | None], given: Splits) -> dict[str | None, str | None]:
    """Return what becomes of the splits in names.

    A supplied `val` is the test split, unless `test` came too, or the user says otherwise. Where no
    validation split came, it will be drawn from `train`, so it is open which samples stay there.
    """
    moved: dict[str | None, str | None] = {split: split for split in found}
    if "val" in found and "test" not in found and not given:
        moved["val"] = "test"
    if "val" not in moved.values():
        moved["train"] = None
    return moved


def _system(member: Member, group_by: str | None) -> str:
    if group_by is None:
        return ""
    if group_by == "folder":
        if not member.folders:
            raise UserError(f"--group-by folder: {printable(member.file)} lies in no folder")
        return member.folders[min(1, len(member.folders) - 1)]
    try:
        found = re.search(group_by, member.file)
    except re.error as error:
        raise UserError(
            f"--group-by {group_by} is neither folder, sky nor a regular expression ({error})"
        ) from error
    if found is None:
        raise UserError(f"--group-by {group_by}: {printable(member.file)} does not match")
    return found[1] if found.re.groups and found[1] is not None else found[0]


def _without_inner(found: list[Member]) -> list[Member]:
    """Drop inner folders that are called alike everywhere, such as a telescope's in each system."""
    while _depth(found) > 1 and len({m.folders[-1] for m in found if m.folders}) == 1:
        found = [m._replace(folders=m.folders[:-1]) for m in found]
    return found


def _depth(found: Sequence[Member]) -> int:
    return max(len(member.folders) for member in found)


def _with_parents(folders: Iterable[str]) -> set[str]:
    """Return these folders and all above them, up to the source, ""."""
    found = {""}
    for folder in folders:
        while folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def _anchor(files: Iterable[str]) -> PurePosixPath:
    """Return the folder below which names have a meaning: the common one, but above a class."""
    parents = [str(PurePosixPath(file).parent) for file in files]
    anchor = PurePosixPath(os.path.commonpath(parents))
    return anchor.parent if str(anchor) in parents else anchor


def _classes(
    listing: Listing,
    found: list[Member],
    empty: list[str],
    labels: Sequence[str] | None,
    group_by: str | None,
) -> None:
    outermost = group_by == "folder" and _depth(found) > 1
    named = [(m, m.folders[0 if outermost else -1]) for m in found if m.folders]
    # Test images may come without labels; elsewhere an image without a class folder is a stray.
    free = "" if any(m.split == "test" for m, _ in named) else "test"
    flat = [m for m in found if not m.folders]
    unlabelled = [m for m in flat if m.split == free]
    _refuse_strays(listing, (m for m in flat if m.split != free))
    names = {name for _, name in named}
    if odd := sorted(name for name in names if not name.isprintable()):
        raise UserError(f"{printable(listing.root)}: {odd[0]!a} cannot be the name of a class")
    if labels:
        _check_labels(listing.root, names, labels)
        listing.labels = list(labels)
    else:
        _check_class_folders(listing.root, [m for m, _ in named], names, empty, outermost)
        listing.labels = _label_order(names)
    for split in {m.split for m in found if m.split} - {m.split for m in unlabelled} or [None]:
        here = {name for m, name in named if m.split == split}
        if missing := sorted(set(listing.labels) - here):
            where = f"the {split} split of " if split else ""
            raise UserError(
                f"{where}{printable(listing.root)} has no images of class {missing[0]!r}"
            )
    number = {name: i for i, name in enumerate(listing.labels)}
    listing.entries = [Entry(m.file, number[name], m.split) for m, name in named]
    listing.entries += [Entry(m.file, -1, m.split) for m in unlabelled]


def _refuse_strays(listing: Listing, strays: Iterable[Member]) -> None:
    listing.refused += [(m.file, "it lies outside any class or split folder") for m in strays]


def _check_labels(root: Path, found: set[str], labels: Sequence[str]) -> None:
    if unknown := sorted(found - set(labels)):
        raise UserError(
            f"{printable(root)} has images in {unknown[0]!r}, which --labels leaves out"
        )


def _check_class_folders(
    root: Path, found: list[Member], names: set[str], empty: list[str], outermost: bool
) -> None:
    """Check that folders look like classes, where the user has not named the classes."""
    above: dict[str, set[str]] = {}
    for member in found:
        for outer, inner in zip(member.folders, member.folders[1:], strict=False):
            above.setdefault(inner, set()).add(outer)
    known = any(names <= set(of) for of in _CANONICAL)
    if not outermost and not known and names <= above.keys():
        tops = set.union(*(above[name] for name in names))
        if len(tops) > 1 and (len(names) == 1 or all(len(above[name]) == 1 for name in names)):
            inner = min(names)
            raise UserError(
                f"{printable(root)}: either {printable(min(above[inner]))!r} or "
                f"{printable(inner)!r} below it is a class; give --group-by folder if the inner "
                "folders are systems, or name the classes with --labels"
            )
    if len(names) > _MAX_CLASSES:
        raise UserError(
            f"{printable(root)} has images in {len(names):,} folders, which do not look "
            f"like classes (at most {_MAX_CLASSES:,}): give --layout images, --group-by folder, or "
            "--labels"
        )
    beside = {str(PurePosixPath(member.file).parent.parent) for member in found}
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


def _pairs(listing: Listing, found: list[Member]) -> None:
    root = listing.root
    sides: dict[str, dict[tuple[str | None, int], str]] = {"hr": {}, "lr": {}}
    for member in found:
        file, split = member.file, member.split
        parent = member.folders[-1].lower() if member.folders else ""
        if parent not in sides:
            _refuse_strays(listing, [member])
            continue
        digits = re.findall(r"[0-9]+", PurePosixPath(file).stem)
        if not digits:
            raise UserError(f"{printable(root / file)} has no number to pair it by")
        other = sides[parent].setdefault((split, int(digits[-1])), file)
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
