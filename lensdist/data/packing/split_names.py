"""Find the split that the names of folders and files give to an image (torch-free).

People write `train/`, `valid/`, `X_test/` beside `X/`, `Test_data/`, `train_lenses/` or
`test_001.npy`. A name is cut into words at `_`, `-`, `.`, blanks, digits and capitals. One of the
words may be a split's; what is left of a folder's name may be a class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from lensdist.data.splits import SPLITS
from lensdist.utils.errors import UserError
from lensdist.utils.files import printable

_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_DOUBTFUL = {"eval", "evaluation", "holdout", "heldout"}  # any of the three, by whom one asks
_EMPTY = {"data", "dataset", "set", "split", "images", "imgs", "image", "samples", "x", "files"}
_WORD = re.compile(r"[A-Z]*[a-z]+|[A-Z]+|[^A-Za-z]+")
_CONTAINER = re.compile(r"(?<=.)\.(npy|npz|zip|h5|hdf5|hdf)$", re.IGNORECASE)
_HOW = "say what they are: --splits NAME=train,NAME=test, or --splits none"

Splits = Mapping[str, str] | None
"""The splits by the names of folders, as the user gives them. Empty: names have no such meaning.
None: find out."""


class Member(NamedTuple):
    """An image file with what its path says.

    Attributes:
        file: relative to the source.
        split: `train`, `val`, `test` or None.
        folders: the folders that it lies in, outermost first, without words for splits.
    """

    file: str
    split: str | None
    folders: tuple[str, ...]


def parse(text: str | None) -> Splits:
    """Read `--splits`: `none`, or `NAME=SPLIT,…`.

    Raises:
        UserError: it is something else.
    """
    if text is None:
        return None
    if text == "none":
        return {}
    given = dict(part.partition("=")[::2] for part in text.split(","))
    if not all(given) or not set(given.values()) <= set(SPLITS):
        raise UserError(
            f"--splits {text} is not understood; give none, or NAME=SPLIT,… with "
            f"{', '.join(SPLITS)}, such as lenses_a=train,lenses_b=test"
        )
    return given


def members(files: Sequence[str], above: str, splits: Splits) -> list[Member]:
    """Return the files with their splits, found in their own names where no folder has one.

    Args:
        files: relative to the source.
        above: the folder below which the names of folders tell images apart.
        splits: see `Splits`.

    Raises:
        UserError: names look like splits, but do not give one to every file.
    """
    if splits is not None:
        return _given(files, above, splits)
    paths = [plain(PurePosixPath(file).relative_to(above).parts) for file in files]
    folders = {name for parts in paths for name in parts[:-1]}
    meaning = _meaning(folders)
    if not meaning:
        return _in_file_names(files, paths, above)
    found = []
    for file, parts in zip(files, paths, strict=True):
        of = [meaning[name] for name in parts[:-1] if name in meaning]
        if len({split for split, _ in of}) > 1:
            raise UserError(f"{printable(file)} lies in folders of two splits; {_HOW}")
        rest = tuple(meaning.get(name, ("", name))[1] for name in parts[:-1])
        found.append(Member(file, of[0][0] if of else None, tuple(filter(None, rest))))
    check_all(found)
    return _without_common_rest(found, {rest for _, rest in meaning.values()})


def _given(files: Sequence[str], above: str, splits: Mapping[str, str]) -> list[Member]:
    found, unused = [], set(splits)
    for file in files:
        path = PurePosixPath(file)
        named = [name for name in plain(path.parts)[:-1] if name in splits]
        unused -= {*named}
        folders = plain(path.relative_to(above).parts)[:-1]
        rest = tuple(name for name in folders if name not in splits)
        found.append(Member(file, splits[named[0]] if named else None, rest))
    if unused:
        raise UserError(f"--splits names the folder {min(unused)!r}, but no image lies in it")
    check_all(found)
    return found


def _meaning(folders: set[str]) -> dict[str, tuple[str, str]]:
    """Return the split of folders that name one, and what is left of their names."""
    found = {name: cut for name in folders if (cut := split_of(name))}
    twice = {cut: name for name, cut in found.items()}
    for name, cut in found.items():
        if twice[cut] != name:
            both = printable(f"{name}, {twice[cut]}")
            raise UserError(f"two folders are for one split: {both}; {_HOW}")
    for name in folders - found.keys():  # `X` beside `X_test`
        if any(rest == name for _, rest in found.values()):
            found[name] = ("train", name)
    return {
        name: (split, "" if rest.lower() in _EMPTY or rest.isdecimal() else rest)
        for name, (split, rest) in found.items()
    }


def split_of(name: str) -> tuple[str, str] | None:
    """Return the split in a folder's name and the rest of it: `test_lenses` is (test, lenses).

    Returns:
        None if no word of it names a split, or several do.

    Raises:
        UserError: a word of it may mean a split or not.
    """
    words = [(word.lower(), at.span()) for at in _WORD.finditer(name) for word in [at[0]]]
    if doubtful := [word for word, _ in words if word in _DOUBTFUL]:
        raise UserError(f"{printable(name)!r}: {doubtful[0]!r} may be any split; {_HOW}")
    named = [(word, span) for word, span in words if word in _WORDS]
    if len(named) != 1:
        return None
    word, (start, end) = named[0]
    return _WORDS[word], (name[:start] + name[end:]).strip("_-. ")


def _in_file_names(
    files: Sequence[str], paths: Sequence[tuple[str, ...]], above: str
) -> list[Member]:
    """Take splits from the files' own names, or from the folders above that all have in common."""
    cuts = [split_of(parts[-1].partition(".")[0]) for parts in paths]
    over = [cut for name in PurePosixPath(above).parts if (cut := split_of(name))]
    found = [
        Member(file, cut[0] if cut else over[-1][0] if over else None, parts[:-1])
        for file, parts, cut in zip(files, paths, cuts, strict=True)
    ]
    check_all(found, flat=True)
    return found


def check_all(found: Sequence[Member], flat: bool = False) -> None:
    """Check that all files have a split, or none; without `flat`, files in no folder may do."""
    with_split = next((one for one in found if one.split), None)
    without = next((one for one in found if not one.split and (flat or one.folders)), None)
    if with_split and without:
        raise UserError(
            f"{printable(with_split.file)} is in the {with_split.split} split by its name, and "
            f"{printable(without.file)} is in none; {_HOW}"
        )


def _without_common_rest(found: Sequence[Member], rests: set[str]) -> list[Member]:
    """Drop a name that all files share, such as that of a telescope: it does not tell classes."""
    shared = set.intersection(*({*one.folders} for one in found)) & rests
    return [
        one._replace(folders=tuple(name for name in one.folders if name not in shared))
        for one in found
    ]


def plain(parts: Sequence[str]) -> tuple[str, ...]:
    """Return a path's parts; of `no.npy/3`, an image in a file, those are `no` and `3`."""
    return (*(_CONTAINER.sub("", part) for part in parts[:-1]), *parts[-1:])


def depth(found: Sequence[Member]) -> int:
    """Return how many folders the deepest file lies in."""
    return max(len(member.folders) for member in found)
