"""Sweeps: a phase, and all that follows from it, once for every point."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lensdist.errors import UserError

MOST = 1000  # points; a typing mistake should not fill a cluster's queue
_UNSAFE = re.compile(r"[^A-Za-z0-9_.,+=-]")
_LONGEST = 80  # characters of a label, which becomes part of a folder's name


@dataclass(frozen=True)
class Point:
    """One combination of values.

    Attributes:
        label: for folders and tables: `optim.lr=1e-4,seed=2`.
        settings: `key=value` or `PHASE.key=value`, as on the command line.
    """

    label: str
    settings: tuple[str, ...]


def points(sweeps: Sequence[str]) -> list[Point]:
    """All combinations of what was asked for, in order.

    Args:
        sweeps: `key=v1,v2,…` each; commas inside brackets belong to a value.

    Raises:
        UserError: no values, the same twice, or too many.
    """
    axes = []
    for sweep in sweeps:
        key, equals, values = sweep.partition("=")
        found = _split(values)
        if not (key and equals and all(found)):
            raise UserError(f"--sweep {sweep}: give key=value,value,…, such as optim.lr=1e-4,3e-4")
        if len(set(found)) < len(found):
            raise UserError(f"--sweep {sweep}: names a value twice")
        axes.append([f"{key}={value}" for value in found])
    if len({axis[0].partition("=")[0] for axis in axes}) < len(axes):
        raise UserError("--sweep: one key is swept twice; give its values in one list")
    combined = [*itertools.islice(itertools.product(*axes), MOST + 1)] if axes else []
    if len(combined) > MOST:
        raise UserError(f"--sweep: more than {MOST} points; sweep in parts")
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
    if label != whole or len(label) > _LONGEST:  # still one label a point
        label = f"{label[:_LONGEST]}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"
    return label
