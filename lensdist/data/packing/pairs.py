"""Find the pairs of a folder's images, LR and HR (torch-free).

Each side is a folder (`LR/`, `high_res/`, `x/`) or a word in the files' names (`a_LR.npy`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from lensdist.data.packing.listing import Entry, Listing, natural
from lensdist.data.packing.split_names import Member
from lensdist.utils.errors import UserError
from lensdist.utils.files import printable

_LOW = "lr low lowres low_res low_resolution lowresolution lr_images lores x"
_HIGH = "hr high highres high_res high_resolution highresolution hr_images hires y"
SIDES = dict.fromkeys(_LOW.split(), "lr") | dict.fromkeys(_HIGH.split(), "hr")
"""The side of a pair by the name of a folder, in lower case."""
_WORD = re.compile(r"(?:^|[_\-. ])(lr|hr|lowres|highres|low|high)(?=$|[_\-. ])", re.IGNORECASE)

_Key = tuple[str | None, str]


def are_pairs(found: Sequence[Member]) -> bool:
    """Return whether names tell LR from HR for every file."""
    parents = {SIDES.get(member.folders[-1].lower(), "") for member in found if member.folders}
    return {"lr", "hr"} in (parents, {_side(member)[0] for member in found})


def fill(listing: Listing, found: list[Member]) -> None:
    """Pair files of one name, or where names differ, of one last number.

    Raises:
        UserError: a file has no partner, or several.
    """
    for key in (_by_name, _by_number):
        sides: dict[str, dict[_Key, str]] = {"lr": {}, "hr": {}}
        strays, twins = [], []
        for member in found:
            side, rest = _side(member)
            if not side:
                strays.append(member)
                continue
            other = sides[side].setdefault((member.split, key(rest)), member.file)
            if other != member.file:
                twins.append((other, member.file))
        lone = sides["lr"].keys() ^ sides["hr"].keys()
        if not lone and not twins:
            break
    listing.refuse_strays(strays)
    root = listing.root
    if twins:
        raise UserError(
            f"{printable(twins[0][0])} and {printable(twins[0][1])} in {printable(root)} have the "
            "same name and number"
        )
    if lone:
        names = [files[one] for files in sides.values() for one in lone & files.keys()]
        raise UserError(
            f"{len(names)} of the files in {printable(root)} have no partner of the same name or "
            f"number: {printable(', '.join(sorted(names, key=natural)[:3]))}"
        )
    listing.entries = [
        Entry(file, split=one[0], target=sides["hr"][one]) for one, file in sides["lr"].items()
    ]


def _side(member: Member) -> tuple[str, str]:
    """Return a file's side, "" if its name has none, and what is left of its name."""
    stem = PurePosixPath(member.file).name.partition(".")[0]
    parent = SIDES.get(member.folders[-1].lower(), "") if member.folders else ""
    if parent:
        return parent, _WORD.sub("", stem)
    words = _WORD.findall(stem)
    return (SIDES[words[0].lower()], _WORD.sub("", stem)) if len(words) == 1 else ("", stem)


def _by_name(rest: str) -> str:
    return rest.lower()


def _by_number(rest: str) -> str:
    digits = re.findall(r"[0-9]+", rest)
    return str(int(digits[-1])) if digits else rest.lower()
