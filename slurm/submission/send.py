"""Send a plan: job files in a submission's folder, then SLURM, or this machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lensdist.config import save
from lensdist.utils.errors import UserError
from lensdist.utils.files import write_atomic
from lensdist.utils.staging import set_aside
from slurm import ROOT, Say, scheduler
from slurm.attempts import phases_sent
from slurm.job import Job, Target, check_own
from slurm.job_side.node_health import versions
from slurm.monitor.status import query
from slurm.plan.plan import Plan, Step
from slurm.register import COPY, register
from slurm.submission.local_runner import run_locally
from slurm.submission.slurm_queue import cancel_leftovers, queue
from slurm.submission.snapshot import copy_code
from slurm.submission.turn import taken

Logged = Callable[[], None]


def send(plan: Plan, say: Say, line: str = "") -> None:
    """Send the steps that are not complete.

    Args:
        line: the command line, which `why` repeats.

    Raises:
        UserError: a phase that is needed is neither complete nor asked for, or a phase is in the
            queue already, or another command is sending; nothing was sent.
        RunError: sbatch refused a job, and those before it are cancelled; or a phase failed here.
    """
    for step in plan.steps:
        if step.done:
            say(f"{step.name}: {step.existing.text}")
    steps = plan.todo
    if not steps:
        return
    _check_build(steps)
    with contextlib.ExitStack() as turn:
        turn.enter_context(taken(plan.state))
        _send(plan, steps, say, line, turn.close)


def _send(plan: Plan, steps: Sequence[Step], say: Say, line: str, logged: Logged) -> None:
    queued = _check_needs(plan, say)
    if plan.cluster.executor == "slurm" and not scheduler.available():
        raise UserError("no sbatch here: submit from a login node of the cluster")
    code, installed = copy_code(ROOT, plan.state), versions()
    folder = new_submission(plan.state, plan.cluster.share)
    jobs = {step.name: plan.job(step, folder, code, installed, line) for step in steps}
    for step in steps:
        if step.config is not None:
            save(step.config, folder / f"{step.name}.yaml")
    save(plan.chain, plan.state / COPY)
    register(plan.chain, plan.runs, line, say)
    aside: dict[Path, Path] = {}
    try:
        _set_aside(steps, aside, say)
        dispatch(jobs, plan.arrays, queued, say, logged)
    except BaseException:
        if plan.cluster.executor == "slurm":  # nothing is queued, so the old files are still valid
            for old, kept in aside.items():
                if not old.exists():
                    kept.rename(old)
        raise


def dispatch(
    jobs: Mapping[str, Job],
    arrays: Mapping[str, str],
    queued: Mapping[str, str],
    say: Say,
    logged: Logged,
) -> None:
    """Write the job files, and send the jobs to SLURM or run them here.

    Args:
        jobs: by name, each after those it needs.
        arrays: the phase of each point of a sweep, which becomes one job array.
        queued: ids of jobs in the queue that these jobs need.
        logged: called when the attempt logs show that the phases were sent.

    Raises:
        RunError: sbatch refused a job, and those before it are cancelled; or a phase failed here.
    """
    first = next(iter(jobs.values()))
    say(f"submission {first.folder}")
    for job in jobs.values():
        write_atomic(job.file, job.model_dump_json(indent=2, exclude_defaults=True))
    if first.cluster.executor == "slurm":
        queue(jobs, arrays, queued, say)
        logged()
    else:
        run_locally(jobs, say, logged)


def new_submission(state: Path, share: str | None = None) -> Path:
    """Make a submission's folder; only its owner may write there, since submitit unpickles it.

    Args:
        share: `group` if the owner's group may read it.

    Raises:
        UserError: the launcher's folder is another user's.
    """
    mode = 0o700
    if share:
        mode = 0o750
        os.umask(0o027)  # also of the jobs, which inherit it
    state.mkdir(parents=True, exist_ok=True, mode=mode)
    check_own(state)
    state.chmod(mode)  # another version, or other settings, may have made it
    folder = state / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    folder.mkdir(mode=mode)
    return folder


def _check_build(steps: Sequence[Step]) -> None:
    """Check that torch can use the GPUs that are asked for, without importing it.

    Raises:
        UserError: it is a build for CPUs; every node would fail its check, one after the other.
    """
    torch = versions()["torch"]
    for step in steps:
        if torch.endswith("+cpu") and step.cluster.gpus_per_node and not step.cluster.own_python:
            raise UserError(
                f"{step.name} asks for GPUs, but torch {torch} of {sys.executable} is a build for "
                "CPUs: install a build for GPUs, or give gpus_per_node: null"
            )


def _check_needs(plan: Plan, say: Say) -> dict[str, str]:
    """Check that all jobs can start one day; return ids of jobs in the queue that they need.

    Raises:
        UserError: a phase that is needed is neither complete, nor sent too, nor in the queue; or a
            phase is in the queue already, and two jobs of it would destroy each other's work.
    """
    sent = {step.name for step in plan.todo}
    targets = {step.name: step.target for step in plan.todo}
    targets |= {need.phase: need for step in plan.todo for need in step.needs}
    if plan.cluster.executor == "slurm":
        cancel_leftovers([*targets.values()], plan.state, say)
    statuses = query([*targets.values()], plan.state)
    live = {one.target.phase: one.sent.job for one in statuses if one.live and one.sent is not None}
    for name in sent & set(live):
        raise UserError(
            f"{name} is in the queue or runs already: job {live[name]}; cancel it first "
            f"(`cancel {name}`), or let it run"
        )
    for step in plan.todo:
        for need in step.needs:
            if need.phase not in {*sent, *live} and not need.reached():
                raise UserError(
                    f"{step.name} needs {need.phase}, which is not complete; submit it too"
                )
    _check_readers(plan)
    return {name: job for name, job in live.items() if name not in sent}


def _check_readers(plan: Plan) -> None:
    """Check that no job in the queue uses a run that would be renamed.

    Raises:
        UserError: a job does.
    """
    aside = {step.target.run for step in plan.todo if step.existing.state == "again"}
    names = phases_sent(plan.state) if aside else []
    for one in query([Target(phase=name, run=plan.runs / name) for name in names], plan.state):
        if not one.live or one.job is None or one.sent is None:
            continue
        for run in aside & {one.job.target.run, *(need.run for need in one.job.needs)}:
            raise UserError(
                f"{one.target.phase} is in the queue or runs, and uses {run}, which is outdated: "
                f"job {one.sent.job}; cancel it first (`cancel {one.target.phase}`), or let it run"
            )


def _set_aside(steps: Sequence[Step], aside: dict[Path, Path], say: Say) -> None:
    """Rename outdated folders, and add their old and new paths to `aside`."""
    for step in steps:
        # The folder of scores or a table has other files, too: only the marker is renamed.
        whole = step.target.kind in ("run", "set")
        old = step.target.run if whole else step.target.marker()
        if (step.existing.state == "again" or not whole) and old.exists():
            aside[old] = set_aside(old)
            say(f"{step.name}: {step.existing.text}: {aside[old]}")
