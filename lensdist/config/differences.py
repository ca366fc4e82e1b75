"""Comparison of a run's saved settings with the current ones (torch-free).

It decides whether a run may continue with them, and whether a finished run matches them.
"""

from __future__ import annotations

from typing import Any

from lensdist.config.schema import recorded_schema
from lensdist.utils.errors import UserError

# These settings change no result: the run's folder and name, the intervals of checkpoints and logs.
# Inputs may be moved, so `asked.other_inputs` compares their content, not their paths.
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

# These change a result by rounding at most: any engine continues from any other's checkpoint.
_ROUNDING = ("engine", "shard.", "speed.")

# These decide when a run ends, and may change on the way. The first two may not if the learning
# rate or the stages are spread over the whole length.
_STEPS = ("train.epochs", "train.max_steps")
LENGTH = {*_STEPS, "train.early_stop"}


BEFORE = {("train", "select_from"): "best", ("data", "choose_with"): "split"}
"""What runs did before these settings existed, which is not today's default."""


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the settings with which a run cannot continue, as `key: old -> new`."""
    free = (*_IDLE, *_ROUNDING, "train.early_stop", "train.select_from")
    return _differences(saved, now, free if drawn_over_its_length(now) else free + _STEPS)


def unmet(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the settings in which a finished run differs from the current ones in its result."""
    return _differences(saved, now, _IDLE + _ROUNDING)


def changes(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the settings that may change a result, if only in the last bits."""
    return _differences(saved, now, _IDLE)


def drawn_over_its_length(now: dict[str, Any]) -> str:
    """Return what is spread over the whole run, so that its length must not change, or ''."""
    if now["optim"]["schedule"]["kind"] == "cosine":
        return "the cosine of the learning rate"
    return "unfreezing" if now.get("unfreeze") == "progressive" else ""


def _differences(saved: dict[str, Any], now: dict[str, Any], free: tuple[str, ...]) -> list[str]:
    new = tuple(f"{part}.{key}" for part, key in BEFORE if key not in (saved.get(part) or ()))
    return _lines(_as_today(saved), now, "", free + new)


def _as_today(saved: dict[str, Any]) -> dict[str, Any]:
    """Add today's defaults for settings that did not exist when the run began."""
    try:
        return recorded_schema(saved).model_validate(saved).model_dump(mode="json")
    except (UserError, ValueError):  # a setting that no longer exists becomes a difference
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
