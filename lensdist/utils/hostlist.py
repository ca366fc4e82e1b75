"""Expand SLURM's lists of nodes without SLURM, which a container lacks."""

from __future__ import annotations

import itertools
import re

_PART = r"(?:[^,\[\]\s]|\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\])+"


def expand(nodes: str) -> list[str]:
    """Return the names in a list of nodes: gpu[07-08],x1 -> gpu07, gpu08, x1.

    Raises:
        ValueError: it is not such a list.
    """
    if not re.fullmatch(f"{_PART}(?:,{_PART})*", nodes):
        raise ValueError(f"{nodes!r} is not a list of nodes")
    found: list[str] = []
    for part in re.findall(_PART, nodes):
        pieces = re.split(r"\[(.*?)\]", part)  # every second piece was in brackets
        choices = [_numbers(p) if odd % 2 else [p] for odd, p in enumerate(pieces)]
        found += map("".join, itertools.product(*choices))
    return found


def _numbers(ranges: str) -> list[str]:
    """Return the numbers of `07-08,11`, with leading zeros as they stand there."""
    found: list[str] = []
    for one in ranges.split(","):
        first, _, last = one.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers:
            raise ValueError(f"{one} ends before it begins")
        found += [f"{number:0{len(first)}d}" for number in numbers]
    return found


def repeated(counts: str) -> list[int]:
    """Return the numbers in SLURM's short form: 2(x3),1 -> 2, 2, 2, 1.

    Raises:
        ValueError: it is not such a form.
    """
    found: list[int] = []
    for part in counts.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"{counts!r} is not a list of counts")
        found += [int(match[1])] * int(match[2] or 1)
    return found
