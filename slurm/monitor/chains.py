"""The chains that were sent from this machine, and where they stand."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lensdist.utils.errors import UserError
from slurm import Say
from slurm.attempts import phases_sent
from slurm.monitor.find import targets_of
from slurm.monitor.status import PhaseStatus, query_all
from slurm.register import registered

HEADER = ("chain", "sent", "phases", "runs")


def as_json(say: Say) -> list[dict[str, Any]]:
    """Return a dict of JSON values for each chain, the newest first; SLURM is asked once."""
    entries, groups, found = registered(say), [], []
    for entry in entries:
        try:
            groups.append((targets_of(entry) if phases_sent(entry.state) else [], entry.state))
        except UserError as e:
            say(f"warning: {entry.runs}: {e}")
            groups.append(([], entry.state))
    for entry, statuses in zip(entries, query_all(groups), strict=True):
        row = entry.model_dump(mode="json")
        found.append(row | {"exists": entry.state.is_dir(), "phases": _counts(statuses)})
    return found


def table_rows(say: Say) -> list[tuple[str, ...]]:
    """Return `HEADER`, and a row for each chain."""
    return [HEADER, *(_row(row) for row in as_json(say))]


def _counts(statuses: Sequence[PhaseStatus]) -> dict[str, int]:
    words = ("complete" if one.complete else one.state[0] for one in statuses)
    return dict(Counter("not sent" if word == "-" else word for word in words))


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    when = time.strftime("%d %b %H:%M", time.localtime(row["time"]))
    counts = ", ".join(f"{number} {word}" for word, number in row["phases"].items())
    where = counts or ("never started" if row["exists"] else "gone")
    return row["name"], when, where, row["runs"]
