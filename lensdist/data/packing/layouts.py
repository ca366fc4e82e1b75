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
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Literal

from lensdist.data.manifest import Kind
from lensdist.data.packing import classes, pairs
from lensdist.data.packing.beside import bands_of, maps_of
from lensdist.data.packing.listing import Entry, Listing, natural
from lensdist.data.packing.split_names import Member, Splits, check_all, depth, members, plain
from lensdist.data.packing.stacks import StackAxes, expanded
from lensdist.data.packing.table import Facts, Table
from lensdist.data.reading.folders import walk
from lensdist.data.reading.readers import ENDINGS, ONLY, Choice
from lensdist.data.splits import SPLITS
from lensdist.utils.errors import UserError
from lensdist.utils.files import printable

Layout = Literal["auto", "classes", "pairs", "images"]
_KINDS: dict[str, Kind] = {"classes": "classify", "pairs": "pairs", "images": "images"}


def find(
    root: Path,
    layout: Layout = "auto",
    labels: Sequence[str] | None = None,
    *,
    splits: Splits = None,
    group_by: str | None = None,
    choice: Choice = ONLY,
    axes: StackAxes | None = None,
    table: Table | None = None,
    into: Listing | None = None,
) -> Listing:
    """List a folder's images with their classes, splits, partners and maps.

    Args:
        root: the folder, or one file that holds many images.
        layout: the layout to take it for; `auto` finds out.
        labels: the classes in label order; default: the canonical order of known sets, else
            sorted names.
        splits: see `split_names.Splits`.
        group_by: what images of one system share: `folder`, `column` of the table, or a regular
            expression of which the first group, or all that it matches of a file's path, names the
            system.
        choice: its bands are those of an image, in their order; see `beside.bands_of`.
        axes: what the axes of arrays mean; None: found by their shapes.
        table: what is known of the images from a table.
        into: is filled and returned; has what was found until then, where an error is raised.

    Raises:
        UserError: nothing to read, a class without images, a partner missing, or names whose
            meaning is not clear; the message names them.
    """
    listing = into or Listing(root)
    if root.is_file():
        listing.root, inside = root.parent, {"": [root.name]}
    else:
        inside = dict(walk(root, listing.skipped, containers=True))
    files = [file for names in inside.values() for file in names]
    stacks = expanded(listing.root, files, listing.skipped, axes, choice.hdu)
    files, bands = stacks.files, choice.bands
    listing.refused += stacks.refused
    if not files:
        bad = [f"{printable(file)}: {why}" for file, why in stacks.refused]
        passed = "; ".join(("", *listing.skipped.lines(), *bad))
        raise UserError(
            f"{printable(root)} holds no image files; save them as {ENDINGS}, .h5 or .zip{passed}"
        )
    empty = sorted(inside.keys() - _with_parents(f for f, names in inside.items() if names))
    for folder in empty:
        listing.skipped.add("folder without images", folder)
    maps, lone = maps_of(files, stacks.maps)
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
    general = stacks.general | _only_container(together)
    found = [m._replace(folders=tuple(f for f in m.folders if f not in general)) for m in found]
    facts = {file: Facts(label) for file, label in stacks.labels.items()}
    if table is not None:
        facts |= table.match({file: _common(files) for file, files in together.items()})
        listing.notes += table.notes(facts)
        found = [_with_split(m, facts.get(m.file)) for m in found]
        check_all(found)
    told = (
        {file: one.label for file, one in facts.items()}
        if any(one.label for one in facts.values())
        else {}
    )
    if group_by == "folder":
        found = _without_inner(found)
    parents = {member.folders[-1].lower() for member in found if member.folders}
    paired = pairs.are_pairs(found) or (bool(parents) and parents <= {"hr", "lr"})
    if layout == "auto":
        classed = bool(parents) and not (group_by == "folder" and depth(found) == 1)
        layout = "pairs" if paired and not told else "classes" if classed or told else "images"
        if layout == "images" and table is None:
            _check_no_table(listing)
            listing.notes += _kinds_in_names(together)
    listing.kind = _KINDS[layout]
    if labels and layout != "classes":
        raise UserError(
            f"--labels goes with class folders, and {printable(root)} is taken for {layout}"
        )
    if layout == "classes" and told:
        classes.fill_told(listing, found, told, labels)
    elif layout == "classes":
        classes.fill(listing, found, empty, labels, group_by)
    elif layout == "pairs":
        pairs.fill(listing, found)
    else:
        listing.entries = [Entry(member.file, split=member.split) for member in found]
    systems = {member.file: _system(member, group_by, facts) for member in found}
    supplied = _supplied({member.split for member in found}, splits)
    listing.entries = [
        replace(
            entry,
            split=supplied[entry.split],
            group=systems[entry.name],
            more=together[entry.name][1:],
            place=facts[entry.name].place if entry.name in facts else None,
            redshift=facts[entry.name].redshift if entry.name in facts else None,
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


def _system(member: Member, group_by: str | None, facts: Mapping[str, Facts]) -> str:
    if group_by is None:
        return ""
    if group_by == "column":
        return facts[member.file].group if member.file in facts else ""
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


def _with_split(member: Member, facts: Facts | None) -> Member:
    return member._replace(split=facts.split) if facts and facts.split else member


def _common(files: Sequence[str]) -> str:
    """Return what the names of files of several bands begin with, which a table may have."""
    names = [PurePosixPath(file).name for file in files]
    alike = takewhile(lambda letters: len({*letters}) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in alike).rstrip("_-. ") if len(names) > 1 else ""


def _only_container(files: Iterable[str]) -> set[str]:
    """Return the name of the file that holds all images, which tells nothing of each."""
    parents = [str(PurePosixPath(file).parent) for file in files]
    shared = PurePosixPath(os.path.commonpath(parents)).parts
    return {plain((part, ""))[0] for part in shared if plain((part, ""))[0] != part}


def _check_no_table(listing: Listing) -> None:
    """Refuse a table beside images without labels: it may hold them."""
    for ending in (".csv", ".tsv"):
        if names := listing.skipped.examples.get(f"other file type ({ending})"):
            name = printable(listing.root / names[0])
            raise UserError(
                f"{name} lies beside images without labels; read it with --labels {name}, or give "
                "--layout images"
            )


def _kinds_in_names(files: Iterable[str]) -> list[str]:
    """Return a note where the first words of names may be the classes of images without labels."""
    words = Counter(
        re.split(r"[_\-. ]?[0-9]", PurePosixPath(file).name, maxsplit=1)[0] for file in files
    )
    if not (1 < len(words) <= 20 and "" not in words and min(words.values()) > 1):
        return []
    listed = ", ".join(f"{printable(word)} ({n})" for word, n in words.most_common())
    return [
        f"names begin with {listed}: if these are classes, put each into a folder of its name, or "
        "give a table with --labels FILE.csv"
    ]


def _without_inner(found: list[Member]) -> list[Member]:
    """Drop inner folders that are called alike everywhere, such as a telescope's in each system."""
    while depth(found) > 1 and len({m.folders[-1] for m in found if m.folders}) == 1:
        found = [m._replace(folders=m.folders[:-1]) for m in found]
    return found


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
