"""Which phase of a chain needs its user most, for `why` without a phase's name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from slurm import scheduler
from slurm.job import Target
from slurm.monitor.known_errors import WATCH, explain_waiting
from slurm.monitor.status import PhaseStatus, query

QUIET = 1800  # s without a new row of metrics; then a run may hang


def neediest(targets: Sequence[Target], state: Path) -> Target | None:
    """Return the phase to speak about; None: none was sent, or all are complete."""
    found = [one for one in query(targets, state) if one.sent is not None and not _is_fine(one)]
    return min(found, key=_rank).target if found else None


def quiet_for(one: PhaseStatus) -> float | None:
    """Return the seconds since a run's last row of metrics; None: it has none."""
    try:
        return time.time() - (one.target.run / "metrics.jsonl").stat().st_mtime
    except OSError:
        return None


def _is_fine(one: PhaseStatus) -> bool:
    return one.complete and not one.damage


def _rank(one: PhaseStatus) -> int:
    """Return how little a phase needs its user; phases of equal rank keep their order."""
    slurm, last = one.slurm, one.last
    waits = slurm is not None and slurm.state in scheduler.WAITING
    reason = slurm.reason if slurm is not None and waits else ""
    if one.failed or one.damage or one.unreadable:
        return 0  # stands still
    if waits and explain_waiting(reason).command != WATCH:
        return 1  # does not start before something is typed
    if one.running:
        return 3 if (quiet_for(one) or 0) > QUIET else 5
    if last is not None and last.what == "ended":
        return 2  # between two attempts
    return 6 if reason == "Dependency" else 4
