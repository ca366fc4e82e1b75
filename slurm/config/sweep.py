"""Sweeps: a phase, and the phases that depend on it, once for each combination of values."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lensdist.utils.errors import UserError

SWEEP = "sweep-"
"""Begins the name of the table of a sweep."""
_MOST = 1000  # points; a typing mistake must not fill a cluster's queue
_UNSAFE = re.compile(r"[^A-Za-z0-9_.,+=-]")
_LIMIT = re.compile(r"(.*)%(\d+)", re.DOTALL)
_END = re.compile(r"%(?!\d+$)[^%,\"'\]}]*$")  # a value in quotes may end in anything
_LONGEST = 80  # characters of a label, which is part of a folder's name


@dataclass(frozen=True)
class Point:
    """One combination of values.

    Attributes:
        label: name in folders and tables: `optim.lr=1e-4,seed=2`.
        settings: `key=value` or `PHASE.key=value`, as on the command line.
    """

    label: str
    settings: tuple[str, ...]


def without_limit(sweeps: Sequence[str]) -> tuple[list[str], int | None]:
    """Return the sweeps without `%N` at the end, as in SLURM's `--array`, and N.

    Raises:
        UserError: N is 0 or not a number, or two of them differ.
    """
    for sweep in sweeps:
        if wrong := _END.search(sweep):
            raise UserError(
                f"--sweep {sweep}: {wrong[0]!r} is not %N, how many points may run at once; "
                "type a number after %, or put a value that has a % in quotes"
            )
    found = [_LIMIT.fullmatch(sweep) for sweep in sweeps]
    limits = {int(one[2]) for one in found if one}
    if len(limits) > 1 or 0 in limits:
        raise UserError("--sweep: %N is how many points may run at once: give it once, from 1 on")
    whole = [one[1] if one else sweep for one, sweep in zip(found, sweeps, strict=True)]
    return whole, next(iter(limits), None)


def points(sweeps: Sequence[str]) -> list[Point]:
    """Return all combinations of the values, in order.

    Args:
        sweeps: each `key=v1,v2,…`; commas inside brackets belong to a value.

    Raises:
        UserError: a sweep has no values or one twice, or there are too many points.
    """
    axes = []
    for sweep in sweeps:
        key, equals, values = sweep.partition("=")
        found = _split(values)
        if not (key and equals and all(found)):
            raise UserError(f"--sweep {sweep}: give key=value,value,…, such as optim.lr=1e-4,3e-4")
        if len(set(found)) < len(found):
            raise UserError(f"--sweep {sweep}: a value stands there twice")
        axes.append([f"{key}={value}" for value in found])
    if len({axis[0].partition("=")[0] for axis in axes}) < len(axes):
        raise UserError("--sweep: a key stands there twice; give its values in one list")
    combined = [*itertools.islice(itertools.product(*axes), _MOST + 1)] if axes else []
    if len(combined) > _MOST:
        raise UserError(f"--sweep: more than {_MOST} points; sweep in parts")
    return [Point(_label(settings), settings) for settings in combined]


def _split(values: str) -> list[str]:
    found, depth = [""], 0
    for character in values:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [value.strip() for value in found]


def _label(settings: Sequence[str]) -> str:
    whole = ",".join(settings)
    label = _UNSAFE.sub("_", whole)
    if label != whole or len(label) > _LONGEST:  # keep labels distinct
        label = f"{label[:_LONGEST]}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"
    return label
