"""Send phases again that have stopped, as they were sent before, and cancel phases."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from pydantic import ValidationError

from lensdist.config import load
from lensdist.config.schema import schema_of
from lensdist.utils.errors import UserError
from lensdist.utils.staging import set_aside
from slurm import Say, scheduler
from slurm.attempts import AttemptLog
from slurm.config.cluster import Cluster
from slurm.job import Job, Target
from slurm.monitor import status
from slurm.monitor.status import PhaseStatus, query
from slurm.plan.plan import shared_evenly
from slurm.submission.send import Logged, dispatch, new_submission
from slurm.submission.slurm_queue import cancel_leftovers
from slurm.submission.snapshot import verify
from slurm.submission.turn import taken


def resume(
    targets: Sequence[Target], state: Path, names: Sequence[str], nodes: str | None, say: Say
) -> None:
    """Send phases again that are neither complete nor in the queue, and those that wait for them.

    They keep their code and configuration, and a run goes on from its newest checkpoint. A phase in
    the queue that can never start is cancelled and sent again.

    Args:
        names: phases to resume; none: all that were sent.
        nodes: another number of nodes; None: as before.

    Raises:
        UserError: a named phase was never sent, or is in the queue, or another command is sending;
            nothing was sent then.
        RunError: SLURM refused a job, or a phase failed here.
    """
    with contextlib.ExitStack() as turn:
        turn.enter_context(taken(state))
        _resume(targets, state, names, nodes, say, turn.close)


def _resume(
    targets: Sequence[Target],
    state: Path,
    names: Sequence[str],
    nodes: str | None,
    say: Say,
    logged: Logged,
) -> None:
    if scheduler.available():
        cancel_leftovers(targets, state, say)
    statuses = {one.target.phase: one for one in query(targets, state)}
    again: dict[str, Job] = {}
    # The name of a swept phase stands for all its points.
    asked = {name for name in statuses if not names or {name, name.partition("@")[0]} & {*names}}
    for name, one in statuses.items():
        job = _to_send(one, again, name in names, name in asked, say)
        if job is not None:
            again[name] = job
    queued = _in_queue(again, statuses)
    if not again:
        if not names and not any(one.live for one in statuses.values()):
            say("nothing has stopped; `status` shows the state of each phase")
        return
    by_slurm = any(job.cluster.executor == "slurm" for job in again.values())
    if by_slurm and not scheduler.available():
        raise UserError("no sbatch here: resume from a login node of the cluster")
    other = {name: _on_nodes(job, nodes if name in asked else None) for name, job in again.items()}
    shared = next((job.cluster.share for job in again.values() if job.cluster.share), None)
    folder = new_submission(state, shared)
    jobs = {
        name: job.model_copy(update={"folder": folder, "together": _together(job, other)})
        for name, job in other.items()
    }
    for name, job in jobs.items():
        if statuses[name].complete:  # a table, which is made again from more runs
            say(f"{name}: the old one is kept as {set_aside(job.target.marker())}")
    stuck = {name: statuses[name].sent for name in again if statuses[name].live}
    scheduler.cancel([sent.job for sent in stuck.values() if sent is not None])
    for name, sent in stuck.items():
        assert sent is not None
        say(f"{name}: job {sent.job} could not have started; cancelled, and sent again")
    dispatch(jobs, _arrays(jobs), queued, say, logged)


def cancel(targets: Sequence[Target], state: Path, say: Say) -> None:
    """Cancel jobs: a run saves if SLURM gives it enough time, and is not requeued.

    Raises:
        RunError: SLURM refused.
    """
    asked = query(targets, state)
    more = {name for one in asked if one.live and one.job for name in one.job.together}
    more -= {target.phase for target in targets}
    if more:  # they share a job, which SLURM cancels as a whole
        asked += query([Target(phase=name, run=state.parent / name) for name in more], state)
    live = [(one, one.sent) for one in asked if one.live and one.sent is not None]
    # Before scancel: the epilogue, and a launcher that starts an attempt, must find the event.
    for one, sent in live:
        AttemptLog.of(state, one.target.phase).append("cancelled", sent.job, sent.submission)
    ids = []
    for one, sent in live:
        if one.by_slurm:
            ids.append(sent.job)
            say(f"{one.target.phase}: job {sent.job} cancelled")
        else:
            say(f"{one.target.phase}: {_cancel_local(one, state)}")
    scheduler.cancel(ids)
    if not live:
        say("none of these phases is in the queue or runs")


def _cancel_local(one: PhaseStatus, state: Path) -> str:
    """Stop a run on this machine, and return the result; the launcher starts the other phases."""
    now = status.query_log(one.target, state)
    mine = now.since_sent
    sent = [e for e in now.events if e.what == "sent" and e.submission == mine[-1].submission]
    begun = [e for e in mine if e.what in ("started", "ended")]
    if not begun or begun[-1].what == "ended":
        return "will not be started" + (" again" if begun else "")
    launcher, process = sent[0].job, sent[-1].job
    debug = one.job is not None and one.job.cluster.executor == "debug"
    if (process == launcher and not debug) or not status.is_ours(process):
        return "asked to save and stop"  # by its launcher, which is about to start the process
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(process), signal.SIGTERM)
    return f"process {process} asked to save and stop"


def _to_send(
    one: PhaseStatus, again: Mapping[str, Job], named: bool, asked: bool, say: Say
) -> Job | None:
    """Return the job of a phase that is to be sent again; None if it is not.

    Raises:
        UserError: it was asked for, and cannot be sent.
    """
    phase = one.target.phase
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
    _check_code(one.job)
    stuck = one.slurm is not None and one.slurm.stuck
    moves = one.by_slurm and not one.job.together and (waits or follows)
    if one.live and not stuck and not moves:
        word, reason = one.state
        where = f"job {one.sent.job}, {word}{f' ({reason})' if reason else ''}"
        if named:
            raise UserError(f"{phase} is in the queue or runs: {where}; cancel it first")
        say(f"{phase}: {where}; left as it is")
        return None
    return one.job


def _check_code(job: Job) -> None:
    """Check that the code that a job was sent with can be sent again.

    Raises:
        UserError: it was changed, or its batch script was of an earlier version.
    """
    verify(job.code, job.state)
    slurm = job.code / "slurm"
    if slurm.is_dir() and not (slurm / "job_side").is_dir():
        raise UserError(
            f"{job.target.phase} was sent by an earlier version of the launcher, whose jobs this "
            "one cannot start; use `submit`: a run goes on from its newest checkpoint"
        )


def _in_queue(again: Mapping[str, Job], statuses: Mapping[str, PhaseStatus]) -> dict[str, str]:
    """Return ids of jobs in the queue that the resumed jobs need.

    Raises:
        UserError: a phase that is needed is neither complete, nor resumed, nor in the queue.
    """
    queued: dict[str, str] = {}
    for name, job in again.items():
        for need in job.needs:
            if need.phase in again or need.reached():
                continue
            before = statuses.get(need.phase)
            if before is None or before.sent is None or not before.live:
                raise UserError(f"{name} needs {need.phase}, which is not complete; resume it too")
            queued[need.phase] = before.sent.job
    return queued


def _together(job: Job, jobs: Mapping[str, Job]) -> tuple[str, ...]:
    """Return the phases that share its job again: of those that did, the ones that are sent."""
    left = tuple(name for name in job.together if name in jobs)
    return left if len(left) > 1 else ()


def _arrays(jobs: Mapping[str, Job]) -> dict[str, str]:
    """Return the phase of each point of a sweep; without points that need scripts of their own."""
    found: dict[str, str] = {}
    for phase, group in groupby(jobs, key=lambda name: name.partition("@")[0]):
        names = [*group]
        alike = all(
            (jobs[name].cluster, jobs[name].code) == (jobs[names[0]].cluster, jobs[names[0]].code)
            for name in names
        )
        if alike and len(names) > 1:
            found |= dict.fromkeys(names, phase)
    return found


def _on_nodes(job: Job, nodes: str | None) -> Job:
    """Return the job of a run on another number of nodes; of other phases, the same job."""
    if nodes is None or job.target.kind != "run":
        return job
    try:
        cluster = Cluster.model_validate({**job.cluster.model_dump(), "nodes": nodes})
    except ValidationError as e:
        raise UserError(f"--nodes {nodes}: {e.errors()[0]['msg']}") from e
    counts = shared_evenly(load(Path(job.argv[-1]), [], schema=schema_of), cluster)
    return job.model_copy(update={"cluster": cluster, "counts": counts})
