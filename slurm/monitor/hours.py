"""The hours that each run of a chain has used, for its table."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from lensdist.utils.errors import UserError
from slurm.attempts import phases_sent
from slurm.job import Target, sent_job
from slurm.monitor.status import query_log, used_by
from slurm.monitor.used import Used


def used_by_runs(state: Path) -> dict[Path, Used]:
    """Return what each folder's phases have used: a run with its evaluations, a set, a table."""
    found: dict[Path, Used] = {}
    for phase in phases_sent(state):
        one = query_log(Target(phase=phase, run=state.parent / phase), state)
        with contextlib.suppress(UserError):  # a file of another version
            if one.sent is not None:
                job = sent_job(state, one.sent, phase)
                one = replace(one, target=job.target, job=job)
        found[one.target.run] = found.get(one.target.run, Used()) + used_by(one, state)
    return found
