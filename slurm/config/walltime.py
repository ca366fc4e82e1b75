"""Time limits as SLURM writes them: minutes, `HH:MM:SS`, `D-HH:MM:SS`."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_DAYS = re.compile(r"(\d+)-(\d{1,2})(?::(\d{2}))?(?::(\d{2}))?")
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d{2})")


def minutes(value: Any) -> Any:
    """Convert a time limit to minutes, rounded up; leave what is not text for pydantic to refuse.

    As for sbatch: `D-HH`, `D-HH:MM`, `D-HH:MM:SS`, `HH:MM:SS`, `MM:SS`, or minutes.

    Raises:
        ValueError: it is none of these.
    """
    if not isinstance(value, str):
        return value
    if value.isdigit():
        return int(value)
    found = _DAYS.fullmatch(value) or _CLOCK.fullmatch(value)
    if found is None:
        raise ValueError(f"{value!r} is not a time; write minutes, HH:MM:SS or D-HH:MM:SS")
    parts = [int(part or 0) for part in found.groups()]
    days, hours, mins, seconds = parts if len(parts) == 4 else [0, *parts]
    return (days * 24 + hours) * 60 + mins + math.ceil(seconds / 60)


Minutes = Annotated[int, BeforeValidator(minutes), Field(ge=1)]
"""Whole minutes, also written as SLURM does."""
