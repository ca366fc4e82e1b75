"""Sending again what stopped, as it was sent, and stopping what runs."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from lensdist.config import load
from lensdist.config.schema import schema_of
from lensdist.errors import UserError
from slurm import scheduler
from slurm.attempts import Ledger
from slurm.config.cluster import Cluster
from slurm.job import Goal, Job
from slurm.monitor import status
from slurm.monitor.status import Seen, look
from slurm.plan.outdated import set_aside
from slurm.plan.step import shared_evenly
from slurm.submission.send import dispatch, new_submission
from slurm.submission.snapshot import check

Say = Callable[[str], None]


def resume(
    goals: Sequence[Goal], state: Path, names: Sequence[str], nodes: str | None, say: Say
) -> None:
    """Send phases again that are neither complete nor in the queue, and what waits for them.

    With the code and the configuration that they were sent with: a run goes on from its newest
    checkpoint. A dependent that can never start is cancelled and sent anew.

    Args:
        goals: the chain's phases, in order.
        state: the launcher's folder.
        names: phases to resume; none: all that were sent.
        nodes: on so many nodes instead; None: as before.
        say: told what happens.

    Raises:
        UserError: a phase was never sent, or is in the queue; nothing was sent then.
        RunError: SLURM refused, or a phase here failed.
    """
    seen = {one.goal.phase: one for one in look(goals, state)}
    again: dict[str, Job] = {}
    # Of a sweep, `finetune` means all its points.
    asked = {name for name in seen if not names or {name, name.partition("@")[0]} & {*names}}
    for name, one in seen.items():
        job = _to_send(one, again, name in names, name in asked, say)
        if job is not None:
            again[name] = job
    queued = _in_queue(again, seen)
    if not again:
        if not names and not any(one.live for one in seen.values()):
            say("nothing has stopped; `status` shows how far each phase is")
        return
    by_slurm = any(job.cluster.executor == "slurm" for job in again.values())
    if by_slurm and not scheduler.available():
        raise UserError("no sbatch here: resume from a login node of the cluster")
    other = {name: _anew(job, nodes if name in asked else None) for name, job in again.items()}
    folder = new_submission(state)
    jobs = {name: job.model_copy(update={"folder": folder}) for name, job in other.items()}
    for name, job in jobs.items():
        if seen[name].complete:  # a table, of which there will be a newer one
            say(f"{name}: the old one is kept aside: {set_aside(job.goal.marker())}")
    stuck = [one for name, one in seen.items() if name in again and one.live]
    scheduler.cancel([one.sent.job for one in stuck if one.sent is not None])
    for one in stuck:
        assert one.sent is not None
        say(f"{one.goal.phase}: job {one.sent.job} could not have started; cancelled, sent anew")
    dispatch(jobs, {}, queued, folder, say)


def cancel(goals: Sequence[Goal], state: Path, say: Say) -> None:
    """Cancel jobs: a run saves if the grace that SLURM gives allows it, and is not queued again.

    Raises:
        RunError: SLURM refused.
    """
    live = [one for one in look(goals, state) if one.live and one.sent is not None]
    # First the word, then the deed: whoever settles an attempt, or starts one, must find it.
    for one in live:
        assert one.sent is not None
        ledger = Ledger(state / "ledger" / f"{one.goal.phase}.jsonl")
        ledger.append("cancelled", one.sent.job, one.sent.submission)
    ids = []
    for one in live:
        assert one.sent is not None
        if one.by_slurm:
            ids.append(one.sent.job)
            say(f"{one.goal.phase}: job {one.sent.job} cancelled")
        else:
            say(f"{one.goal.phase}: {_cancel_here(one, state)}")
    scheduler.cancel(ids)
    if not live:
        say("none of these phases is in the queue or runs")


def _cancel_here(one: Seen, state: Path) -> str:
    """Tell a run without SLURM to leave; what became of it. The launcher goes on with the rest."""
    now = status.glance(one.goal, state)
    sent = [e for e in now.events if e.what == "sent" and e.submission == now.mine[-1].submission]
    begun = [e for e in now.mine if e.what in ("started", "ended")]
    if not begun or begun[-1].what == "ended":
        return "will not be started" + (" again" if begun else "")
    launcher, process = sent[0].job, sent[-1].job
    debug = one.job is not None and one.job.cluster.executor == "debug"
    if (process == launcher and not debug) or not status.is_ours(process):
        return "told to save and leave"  # by its launcher, which is about to start the process
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(process), signal.SIGTERM)
    return f"process {process} told to save and leave"


def _to_send(one: Seen, again: Mapping[str, Job], named: bool, asked: bool, say: Say) -> Job | None:
    """The job of a phase that is to be sent again; None where it is not.

    Raises:
        UserError: it was asked for, and cannot be.
    """
    phase = one.goal.phase
    if one.sent is None or one.job is None:
        if named and one.unreadable:
            raise UserError(f"{phase}: {one.unreadable}")
        if named:
            raise UserError(f"{phase} was never sent: use `submit`")
        return None
    waits = any(need.phase in again for need in one.job.needs)
    follows = any(name in again for name in one.job.follows)
    if (one.complete and not follows) or not (asked or waits or follows):
        if named:
            say(f"{phase}: complete already, skipped")
        return None
    if one.damage:
        raise UserError(f"{phase}: {one.damage}")
    check(one.job.code, one.job.state)
    stuck = one.slurm is not None and one.slurm.stuck
    if one.live and not stuck and not (one.by_slurm and (waits or follows)):
        word, reason = one.state
        where = f"job {one.sent.job}, {word}{f' ({reason})' if reason else ''}"
        if named:
            raise UserError(f"{phase} is in the queue or runs: {where}; cancel it first")
        say(f"{phase}: {where}; left as it is")
        return None
    return one.job


def _in_queue(again: Mapping[str, Job], seen: Mapping[str, Seen]) -> dict[str, str]:
    """Ids of jobs in the queue that those which are sent again need.

    Raises:
        UserError: one needs what is neither complete, nor sent again, nor in the queue.
    """
    queued: dict[str, str] = {}
    for name, job in again.items():
        for need in job.needs:
            if need.phase in again or need.reached():
                continue
            before = seen.get(need.phase)
            if before is None or before.sent is None or not before.live:
                raise UserError(f"{name} needs {need.phase}, which is not complete; resume it too")
            queued[need.phase] = before.sent.job
    return queued


def _anew(job: Job, nodes: str | None) -> Job:
    if nodes is None or job.goal.kind != "run":
        return job
    try:
        cluster = Cluster.model_validate({**job.cluster.model_dump(), "nodes": nodes})
    except ValidationError as e:
        raise UserError(f"--nodes {nodes}: {e.errors()[0]['msg']}") from e
    counts = shared_evenly(load(Path(job.words[-1]), [], schema=schema_of), cluster)
    return job.model_copy(update={"cluster": cluster, "counts": counts})
