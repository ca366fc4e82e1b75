"""Which settings of a run may change between its beginning and a resume (torch-free)."""

from __future__ import annotations

from typing import Any

from lensdist.config.schema import schema_of
from lensdist.errors import UserError

# How long, how often saved, where shown: none of them changes what a step computes.
_FREE = (
    "run.",
    "preset",
    "checkpoint.",
    "track.",
    "engine",  # any of them goes on from what any other has saved
    "shard.",
    "speed.",
    "train.early_stop",
    "train.log_every",
    "data.resident",
    "data.verify",
    "data.path",  # its fingerprint is compared instead: a set may be moved
)

# How long, too, unless the learning rate is drawn over the whole length, or stages share it out.
_LENGTH = ("train.epochs", "train.max_steps")


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings that differ, as `key: old -> new`, without those that are free to change."""
    saved = _as_today(saved)
    whole = now["optim"]["schedule"]["kind"] == "cosine" or now.get("unfreeze") == "progressive"
    return _differences(saved, now, "", _FREE if whole else _FREE + _LENGTH)


def _as_today(saved: dict[str, Any]) -> dict[str, Any]:
    """With today's defaults for settings that were not there when the run began."""
    try:
        return schema_of(saved).model_validate(saved).model_dump(mode="json")
    except (UserError, ValueError):  # what is no longer a setting will be named as a difference
        return saved


def _differences(saved: Any, now: Any, at: str, free: tuple[str, ...]) -> list[str]:
    if isinstance(saved, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted(saved.keys() | now.keys())
            for line in _differences(
                saved.get(key), now.get(key), f"{at}.{key}" if at else key, free
            )
        ]
    if saved == now or at.startswith(free):
        return []
    return [f"{at}: {saved} -> {now}"]
