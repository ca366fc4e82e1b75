"""Find the classes of a folder's images (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from lensdist.data.packing.listing import Entry, Listing, natural
from lensdist.data.packing.split_names import Member, depth
from lensdist.utils.errors import UserError
from lensdist.utils.files import printable

_MAX_CLASSES = 1000
_FEW = 5  # folders of one image each may be classes where there are fewer
_CANONICAL = (("no_sub", "cdm", "axion"), ("no", "sphere", "vort"))


def fill(
    listing: Listing,
    found: list[Member],
    empty: list[str],
    labels: Sequence[str] | None,
    group_by: str | None,
) -> None:
    outermost = group_by == "folder" and depth(found) > 1
    named = [(m, m.folders[0 if outermost else -1]) for m in found if m.folders]
    # Test images may come without labels; elsewhere an image without a class folder is a stray.
    free = "" if any(m.split == "test" for m, _ in named) else "test"
    flat = [m for m in found if not m.folders]
    unlabelled = [m for m in flat if m.split == free]
    listing.refuse_strays(m for m in flat if m.split != free)
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


def fill_told(
    listing: Listing, found: list[Member], told: Mapping[str, str], labels: Sequence[str] | None
) -> None:
    """Take the classes from what is known of each file; test images may have none.

    Where classes are numbers from 0, `labels` may name them.

    Raises:
        UserError: `labels` leaves out a class.
    """
    names = {name for name in told.values() if name}
    numbers = [str(i) for i in range(len(labels or ()))]
    if labels and names <= {*numbers} and not names <= {*labels}:
        told = {file: labels[int(name)] if name else "" for file, name in told.items()}
        names = {labels[int(name)] for name in names}
    if labels:
        _check_labels(listing.root, names, labels)
    listing.labels = list(labels) if labels else _label_order(names)
    if len(names) > _MAX_CLASSES:
        raise UserError(
            f"{len(names):,} values of the label do not look like classes (at most "
            f"{_MAX_CLASSES:,}); say which column is the label with --columns label=COLUMN"
        )
    number = {name: i for i, name in enumerate(listing.labels)} | {"": -1}
    for member in found:
        name = told.get(member.file, "")
        if name or member.split == "test":
            listing.entries.append(Entry(member.file, number[name], member.split))
        else:
            listing.refused.append((member.file, "no label is given for it"))


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
    if len(found) == len(names) >= _FEW:
        raise UserError(
            f"{printable(root)}: each of {len(names)} folders, such as {printable(min(names))!r}, "
            "holds one image, so their names are not classes: give --layout images, or the classes "
            "in a table with --labels FILE.csv"
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
