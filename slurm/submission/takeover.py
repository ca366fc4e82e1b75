"""Send a new job in place of one that SLURM will not queue again, from inside the old one.

Some centres allow no requeue, and a job that was preempted by cancelling may be past it. What waits
for the old job is made to wait for the new one before the old one ends: SLURM would cancel it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from lensdist.utils.errors import RunError, UserError
from lensdist.utils.files import write_atomic
from slurm import Say, scheduler
from slurm.attempts import AttemptLog, is_cancelled, phases_sent
from slurm.job import Job, load_job, sent_job
from slurm.plan.sbatch import batch_script, dependencies


def take_over(job: Job, exclude: Sequence[str], delay: float, say: Say) -> str:
    """Send a phase again as a new job of the same submission, and move its dependents to it.

    Args:
        exclude: nodes that it must not use.
        delay: seconds before it may start.

    Returns:
        The new job's id.

    Raises:
        RunError: SLURM takes no job from here.
    """
    return _send(job, [], exclude, delay, say)


def _send(job: Job, after: Sequence[str], exclude: Sequence[str], delay: float, say: Say) -> str:
    _forget_code(job)
    phase = job.target.phase
    shared = [load_job(job.folder / f"{name}.json") for name in job.together]
    text = batch_script(job, after, shared=shared)
    new = scheduler.send(write_atomic(job.folder / f"{phase}.again.sh", text), exclude, delay)
    for one in shared or [job]:
        if one is job or not one.settled():
            one.log_sent(new)
    say(f"{phase}: sent again as job {new}")
    if is_cancelled(
        job.attempt_log.events(), job.folder.name
    ):  # while it was sent: the user's command did not know this job
        scheduler.cancel([new])
    for other, old, conditions in _dependents(job):
        name = other.target.phase
        try:
            scheduler.depend(old, conditions)
            say(f"{name}: job {old} now waits for {new}")
        except RunError as e:
            say(f"{name}: job {old} could not be made to wait for {new} ({e})")
            _send(other, conditions, other.cluster.exclude, 0, say)
    return new


def _dependents(job: Job) -> Iterator[tuple[Job, str, list[str]]]:
    """Yield each phase that waits for a job: its job, the id, and what it must wait for now."""
    logs = {name: AttemptLog.of(job.state, name).events() for name in phases_sent(job.state)}
    sent = {n: e for n, events in logs.items() for e in events if e.what == "sent"}
    known = scheduler.states([event.job for event in sent.values()])
    active = {n: e.job for n, e in sent.items() if e.job in known and known[e.job].active}
    active |= {name: sent[name].job for name in (job.target.phase, *job.together)}
    moved, seen = {job.target.phase, *job.together}, set[str]()
    for name, old in active.items():
        try:
            other = sent_job(job.state, sent[name], name)
        except UserError:
            continue
        before = {*(need.phase for need in other.needs), *other.follows}
        if name in moved or name in seen:
            continue
        if moved & before and known[old].state in scheduler.WAITING:
            seen |= {*other.together}
            yield other, old, dependencies([name], {name: other}, active) or []


def _forget_code(job: Job) -> None:
    """Take the code off this process's PYTHONPATH: the script of the new job adds it itself."""
    parts = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in parts if p != str(job.code))
