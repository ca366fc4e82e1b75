"""Two questions about settings that differ: may a run go on with them, and is a finished run what
is asked for now (torch-free).
"""

from __future__ import annotations

from typing import Any

from lensdist.config.schema import recorded_schema
from lensdist.utils.errors import UserError

# Change no result: where a run lies, what it is called, how often it is saved and shown. Paths of
# inputs say nothing of what lies there, which may be moved: `asked.other_inputs` compares that.
_IDLE = (
    "run.",
    "preset",
    "checkpoint.",
    "track.",
    "train.log_every",
    "data.resident",
    "data.verify",
    "data.path",
    "encoder",
    "members_from",
    "weights.",
)

# Change a result by rounding at most: any engine goes on from what any other has saved.
_ROUNDING = ("engine", "shard.", "speed.")

# When a run ends. It may learn another end on its way: of the first two only where neither the
# learning rate is drawn over the whole length, nor stages share it out.
_STEPS = ("train.epochs", "train.max_steps")
LENGTH = {*_STEPS, "train.early_stop"}


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings with which a run cannot go on, as `key: old -> new`."""
    free = (*_IDLE, *_ROUNDING, "train.early_stop")
    return _differences(saved, now, free if drawn_over_its_length(now) else free + _STEPS)


def unmet(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings that decide the result, and are not what a finished run was asked for."""
    return _differences(saved, now, _IDLE + _ROUNDING)


def changes(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings that may change a result, be it the last bits, whether or not a run may go on."""
    return _differences(saved, now, _IDLE)


def drawn_over_its_length(now: dict[str, Any]) -> str:
    """What spans the whole run, so that another length is another run; empty where nothing does."""
    if now["optim"]["schedule"]["kind"] == "cosine":
        return "the cosine of the learning rate"
    return "unfreezing" if now.get("unfreeze") == "progressive" else ""


def _differences(saved: dict[str, Any], now: dict[str, Any], free: tuple[str, ...]) -> list[str]:
    return _lines(_as_today(saved), now, "", free)


def _as_today(saved: dict[str, Any]) -> dict[str, Any]:
    """With today's defaults for settings that were not there when the run began."""
    try:
        return recorded_schema(saved).model_validate(saved).model_dump(mode="json")
    except (UserError, ValueError):  # what is no longer a setting will be named as a difference
        return saved


def _lines(saved: Any, now: Any, at: str, free: tuple[str, ...]) -> list[str]:
    if isinstance(saved, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted(saved.keys() | now.keys())
            for line in _lines(saved.get(key), now.get(key), f"{at}.{key}" if at else key, free)
        ]
    if saved == now or at.startswith(free):
        return []
    return [f"{at}: {saved} -> {now}"]
