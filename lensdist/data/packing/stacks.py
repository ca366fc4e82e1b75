"""List the images of stacks and of other files that hold many, with labels and maps beside them.

A stack is an array of many images, (N, H, W), (N, C, H, W) or (N, H, W, C). It takes part in a
folder's layout as a folder of its name: `no.npy` is a class, `X_train.npy` a split (torch-free).
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from lensdist.data.packing.beside import Maps
from lensdist.data.packing.pairs import SIDES
from lensdist.data.packing.split_names import split_of
from lensdist.data.reading import containers
from lensdist.data.reading.folders import Passed
from lensdist.data.reading.raw import MAP_ROLES, BadFile
from lensdist.data.reading.readers import MAX_BANDS, bands_last, form
from lensdist.data.reading.roles import Role, named
from lensdist.utils.errors import UserError
from lensdist.utils.files import printable

StackAxes = Literal["CHW", "HWC", "NHW", "NCHW", "NHWC"]

_FEW = 100  # files of a folder: where there are more, each holds one image, and none is opened here
_LABELS = {"labels", "label", "y", "class", "classes", "target", "targets"}
_IMAGES = {"images", "image", "imgs", "img", "x", "data", "dataset", "samples", "arr", "stack"}


@dataclass
class Expanded:
    """The images that were found in files, and the labels found beside them."""

    files: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    """The label of each image that an array beside its stack tells."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    maps: dict[str, Maps] = field(default_factory=dict)
    """The maps of each image of a stack: its own ones, and those that serve the whole stack."""
    general: set[str] = field(default_factory=set)
    """Names of stacks that tell nothing of their images, such as `images`."""


class _Array(NamedTuple):
    """An array of a file, `name` relative to the source."""

    name: str
    container: Path
    member: containers.Member


def expanded(
    root: Path,
    files: Sequence[str],
    passed: Passed,
    axes: StackAxes | None = None,
    chosen: str | None = None,
    *,
    labelled: bool = True,
) -> Expanded:
    """Return the images of files: those of stacks and containers one by one, others as they are.

    Args:
        root: the folder that files are relative to.
        files: files with images.
        passed: counts what is not taken for an image, such as arrays of other shapes.
        axes: what the axes of arrays mean; None: found by their shapes.
        chosen: the name of the arrays to take, where a file holds several.
        labelled: whether labels beside stacks are read.

    Raises:
        UserError: it is not clear which arrays are the images, or labels or maps do not fit.
    """
    found = Expanded()
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for file in files:
        folders[str(PurePosixPath(file).parent)].append(file)
    arrays: defaultdict[str, list[_Array]] = defaultdict(list)
    for names in folders.values():
        many = len(names) > _FEW and (axes is None or axes[0] != "N")
        for file in names:
            if not containers.is_container(file) and (
                many or (form(file) or ("", ""))[1] not in (".npy", ".npz")
            ):
                found.files.append(file)
                continue
            try:
                inside = containers.members(root / file)
            except BadFile as error:
                if containers.is_container(file):
                    found.refused.append((file, str(error)))
                else:
                    found.files.append(file)  # its reader says why it cannot be used
                continue
            if _is_one_image(file, inside, axes):
                found.files.append(file)
            else:
                _sort(root, file, inside, arrays, found, passed)
    for beside in arrays.values():
        _expand(beside, found, passed, axes, chosen, labelled)
    return found


def rows(shape: tuple[int, ...], axes: StackAxes | None) -> int | None:
    """Return how many images an array holds; None: it is one image, or something else."""
    if axes is not None:
        return shape[0] if axes[0] == "N" and len(shape) == len(axes) else None
    if len(shape) == 4 and shape[0] != 1:
        return shape[0]
    return shape[0] if len(shape) == 3 and shape[0] > MAX_BANDS and not bands_last(shape) else None


def _is_one_image(file: str, inside: Sequence[containers.Member], axes: StackAxes | None) -> bool:
    """Return whether a .npy or .npz file is a sample of its own, as `readers` takes it."""
    if containers.is_container(file):
        return False
    if file.lower().endswith(".npy"):
        return inside[0].dtype == "O"
    arrays = [_Array(f"{file}/{one.name}", Path(), one) for one in inside]
    _check_rows(arrays)
    return all(_images(array, arrays, axes) is None for array in arrays)


def _images(array: _Array, beside: Sequence[_Array], axes: StackAxes | None) -> int | None:
    """Return how many images an array holds; where its shape leaves it open, labels decide."""
    shape = array.member.shape or ()
    n = rows(shape, axes)
    if n is None and axes is None and len(shape) == 3 and not bands_last(shape):
        counts = [one.member.shape or () for one in beside if _is_labels(one.name)]
        n = shape[0] if any(len(of) in (1, 2) and of[0] == shape[0] for of in counts) else None
    return n


def _check_rows(beside: Sequence[_Array]) -> None:
    """Refuse images that were written as rows of numbers, beside a label for each row.

    Raises:
        UserError: there are such rows; the message says what to type.
    """
    shapes = [one.member.shape or () for one in beside if _is_labels(one.name)]
    counts = {shape[0] for shape in shapes if len(shape) == 1 or shape[1:] == (1,)}
    for name, _, member in beside:
        n, *row = member.shape or (0,)
        if len(row) == 1 and n in counts and not _is_labels(name) and row[0] >= 64:
            side = math.isqrt(row[0])
            how = f"({n}, {side}, {side})" if side * side == row[0] else f"({n}, height, width)"
            raise UserError(
                f"{printable(name)} holds {n} rows of {row[0]} numbers, with a label for each: "
                f"give images their shape, x.reshape{how}, and save them again"
            )


def _sort(
    root: Path,
    file: str,
    inside: Sequence[containers.Member],
    arrays: defaultdict[str, list[_Array]],
    found: Expanded,
    passed: Passed,
) -> None:
    """Put images of a container among the files, and arrays into the folder that they lie in."""
    few = sum(one.shape is None for one in inside) <= _FEW
    for one in inside:
        name = f"{file}/{one.name}" if one.name else file
        parts = PurePosixPath(one.name).parts
        if "__MACOSX" in parts:
            passed.add("__MACOSX", name)
        elif any(part.startswith(".") for part in parts) or one.name.startswith("/"):
            passed.add("hidden", name)
        elif one.shape is not None:
            folder = str(PurePosixPath(name).parent)
            arrays[folder].append(_Array(name, root / file, one))
        elif not form(parts[-1]):
            passed.other(name)
        elif few and parts[-1].lower().endswith(".npy"):
            member = containers.array_in_zip(root / file, one.name)
            folder = str(PurePosixPath(name).parent)
            arrays[folder].append(_Array(name, root / file, member))
        else:
            found.files.append(name)


def _expand(
    beside: Sequence[_Array],
    found: Expanded,
    passed: Passed,
    axes: StackAxes | None,
    chosen: str | None,
    labelled: bool,
) -> None:
    """Add the images of the arrays of one folder."""
    _check_rows(beside)
    stacks, labels, maps = dict[str, int | None](), list[_Array](), dict[str, Role]()
    by_name = {array.name: array for array in beside}
    many = {array.name: _images(array, beside, axes) for array in beside}
    roles = {name: named(_stem(name)).role for name in by_name}
    some = any(n is not None and roles[name] not in MAP_ROLES for name, n in many.items())
    for name, (_, _, member) in by_name.items():
        shape, n, role = member.shape or (), many[name], roles[name]
        of_a_stack = len(shape) == 2 and shape[0] in many.values()
        taken = chosen is None or chosen in (member.name, _stem(name))
        if _is_labels(name) and (len(shape) == 1 or of_a_stack):
            labels.append(by_name[name])
            passed.add("labels of the images beside them", name)
        elif some and role in MAP_ROLES and len(shape) > 1 and not (chosen and taken):
            assert role is not None
            maps[name] = role
        elif n is None and not member.name:
            found.files.append(name)
        elif not taken:
            passed.add(f"it is not the array that --hdu {chosen} chooses", name)
        elif len(shape) < 2 or member.dtype not in "fiub":
            passed.add(f"an array of {len(shape)} axes, which is not an image", name)
        else:
            stacks[name] = n
    whole = {name: n for name, n in stacks.items() if n is not None}
    owners = {name: _owners(name, many[name], whole) for name in maps}
    stacks |= {name: many[name] for name in maps if not owners[name]}
    whole |= {name: n for name, n in stacks.items() if n is not None}
    if labelled or any(by_name[name].member.name for name in whole):  # else each file is images
        _check_meaning([*whole], by_name)
    paired = _paired([*whole])
    told = _labels_of(whole, labels) if labelled else {}
    found.files += [name for name in stacks if name not in whole]
    for name, n in whole.items():
        images = [f"{name}/{i}" for i in range(n)]
        found.files += images
        if _is_general(name) and not paired:
            found.general.add(_stem(name))
        found.labels |= dict(zip(images, told.get(name, ()), strict=False))
        own = [(maps[of], of, many[of]) for of in maps if name in owners[of]]
        for i, image in enumerate(images if own else ()):
            found.maps[image] = tuple(
                (role, of if each is None else f"{of}/{i}") for role, of, each in own
            )


def _owners(name: str, n: int | None, stacks: Mapping[str, int]) -> list[str]:
    """Return the stacks that a map belongs to: those called alike, or all, if it is only a role.

    Args:
        name: the map.
        n: how many images it has a map of; None: one map serves all.
        stacks: how many images each stack holds.

    Raises:
        UserError: it has not as many maps as there are images.
    """
    own, *theirs = (_words(named(_stem(each)).stem) for each in (name, *stacks))
    found = [stack for stack, words in zip(stacks, theirs, strict=True) if words == own]
    if not found and own == ("", None) and (n is None or len(stacks) == 1):
        found = [*stacks]
    for stack in found:
        if n not in (None, stacks[stack]):
            raise UserError(
                f"{printable(name)} holds {n} maps, and {printable(stack)} {stacks[stack]} images; "
                "give a map for each image, one for all, or rename it if it holds images"
            )
    return found


def _check_meaning(stacks: Sequence[str], arrays: Mapping[str, _Array]) -> None:
    """Check that several stacks of one folder and split are called as classes, or as LR and HR."""
    by_split: defaultdict[str | None, list[str]] = defaultdict(list)
    for name in stacks:
        cut = split_of(_stem(name))
        by_split[cut[0] if cut else None].append(name)
    for names in by_split.values():
        parts = {re.sub("[0-9]+", "", name) for name in names}  # of one stack: images_1, images_2
        if len(parts) > 1 and not _paired(names) and any(_is_general(name) for name in names):
            listed = ", ".join(
                f"{name} {'x'.join(map(str, arrays[name].member.shape or ()))}" for name in names
            )
            raise UserError(
                f"several stacks may be the images: {printable(listed)}; choose one with --hdu "
                "NAME, or call each as its class, split or LR and HR"
            )


def _labels_of(stacks: Mapping[str, int], labels: Iterable[_Array]) -> dict[str, list[str]]:
    """Return the labels of each stack that has an array of them beside it."""
    told: dict[str, list[str]] = {}
    for array in labels:
        n = (array.member.shape or (0,))[0]
        same = [name for name, of in stacks.items() if of == n]
        alike = [name for name in same if _words(name) == _words(array.name)]
        owners = alike or (same if len(same) == 1 == len(stacks) else [])
        if len(owners) != 1 or owners[0] in told:
            listed = ", ".join(f"{name} ({of} images)" for name, of in stacks.items())
            raise UserError(
                f"{printable(array.name)} holds {n} labels, and it is not clear of which stack: "
                f"{printable(listed) or 'there is none'}; name them alike, such as X_a and y_a"
            )
        try:
            told[owners[0]] = containers.texts(array.container, array.member.name)
        except BadFile as error:
            raise UserError(f"{printable(array.name)}: {error}") from error
    return told


def _paired(names: Sequence[str]) -> bool:
    """Return whether stacks are called LR and HR, split by split."""
    sides = [((split_of(_stem(name)) or ("",))[0], _side(name)) for name in names]
    return len({*sides}) == len(sides) and {side for _, side in sides} == {"lr", "hr"}


def _side(name: str) -> str:
    cut = split_of(_stem(name))
    return SIDES.get((cut[1] if cut else _stem(name)).lower(), "")


def _is_general(name: str) -> bool:
    return not _words(name)[0]


def _stem(name: str) -> str:
    last = PurePosixPath(name).name
    return (form(last) or (last, ""))[0]


def _is_labels(name: str) -> bool:
    return bool(_LABELS & {*_cut(name)}) and not _IMAGES & {*_cut(name)[1:]}


def _cut(name: str) -> list[str]:
    return [word for word in re.split(r"[_\-. ]+", _stem(name).lower()) if word]


def _words(name: str) -> tuple[str, str | None]:
    """Return what is left of a name without words for images, labels and splits, and its split."""
    cut = split_of(_stem(name))
    rest = re.split(r"[_\-. ]+", (cut[1] if cut else _stem(name)).lower())
    kept = [word for word in rest if word not in _LABELS | _IMAGES and not word.isdecimal()]
    return "_".join(kept), cut[0] if cut else None
