"""Numbers, durations, lists and tables as text (torch-free)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_SKEW = 60  # s by which the clocks of one cluster may differ


def some(names: Iterable[object], most: int = 3) -> str:
    """Return the first names and the number of the others: `a, b, c and 4 more`."""
    texts = [str(name) for name in names]
    more = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {more} more" if more > 0 else "")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 GPU`, `3 processes`."""
    ending = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{'' if number == 1 else ending}"


def duration(seconds: float) -> str:
    """Return a time span as text: 40 s, 3 min, 2:10 h, 3 d 4 h.

    A negative span means that a clock was changed, or that the clocks of two machines differ.
    """
    whole = round(seconds)
    if whole < 0:
        return "0 s" if whole >= -_SKEW else "? (clock set back)"
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    hours, days = minutes // 60, minutes // 1440
    if hours < 1:
        return f"{minutes} min"
    return f"{hours}:{minutes % 60:02d} h" if days < 2 else f"{days} d {hours % 24} h"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
