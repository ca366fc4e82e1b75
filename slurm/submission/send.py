"""A plan to its jobs: files in a submission's folder, and SLURM jobs that wait for each other."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lensdist.config import save
from lensdist.errors import UserError
from lensdist.files import write_atomic
from slurm import scheduler
from slurm.job import Goal, Job
from slurm.job_side.node_health import versions
from slurm.monitor.status import look
from slurm.plan.outdated import set_aside
from slurm.plan.plan import ROOT, Plan
from slurm.plan.step import Step
from slurm.submission.local_runner import run_here
from slurm.submission.slurm_queue import queue
from slurm.submission.snapshot import take

JOBS = "jobs.json"  # in a submission: the id of each phase's job

Say = Callable[[str], None]


def send(plan: Plan, say: Say, line: str = "") -> None:
    """Send what is not finished yet.

    Args:
        plan: what is asked for.
        say: told what happens, a sentence at a time.
        line: the command line, for `why` to say it again.

    Raises:
        UserError: a phase is needed that is neither finished nor asked for, or is in the queue
            already; nothing was sent.
        RunError: sbatch refused (what was sent before is cancelled), or a phase here failed.
    """
    for step in plan.steps:
        if step.done:
            say(f"{step.name}: {step.standing.sentence}")
    steps = plan.todo
    if not steps:
        return
    queued = _check_needs(plan)
    if plan.cluster.executor == "slurm" and not scheduler.available():
        raise UserError("no sbatch here: submit from a login node of the cluster")
    code, installed = take(ROOT, plan.state), versions()
    folder = new_submission(plan.state)
    jobs = {
        step.name: step.job(plan.chain.name, plan.state, folder, code, installed, line)
        for step in steps
    }
    for step in steps:
        if step.config is not None:
            save(step.config, folder / f"{step.name}.yaml")
    arrays = {step.name: step.phase for step in steps if step.point is not None}
    aside: dict[Path, Path] = {}
    try:
        _set_aside(steps, aside, say)
        dispatch(jobs, arrays, queued, folder, say)
    except BaseException:
        if plan.cluster.executor == "slurm":  # nothing is queued, so nothing is outdated
            _put_back(aside)
        raise


def dispatch(
    jobs: Mapping[str, Job],
    arrays: Mapping[str, str],
    queued: Mapping[str, str],
    folder: Path,
    say: Say,
) -> None:
    """Write jobs to a submission's folder, and send them.

    Args:
        jobs: by name, each after those it needs.
        arrays: of the points of a sweep, the phase whose array they belong to.
        queued: ids of jobs that are needed and in the queue already.
        folder: the submission.
        say: told what happens, a sentence at a time.

    Raises:
        RunError: sbatch refused (what was sent before is cancelled), or a phase here failed.
    """
    say(f"submission {folder}")
    for name, job in jobs.items():
        write_atomic(folder / f"{name}.json", job.model_dump_json(indent=2, exclude_defaults=True))
    if next(iter(jobs.values())).cluster.executor == "slurm":
        queue(jobs, arrays, queued, folder / JOBS, say)
    else:
        run_here(jobs, folder / JOBS, say)


def new_submission(state: Path) -> Path:
    """A folder that nobody else may write to: submitit unpickles what it finds on the node."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    state.chmod(0o700)  # it may be older than this rule
    folder = state / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    folder.mkdir(mode=0o700)
    return folder


def _check_needs(plan: Plan) -> dict[str, str]:
    """Make sure that what is sent can start one day; ids of jobs in the queue that it needs.

    Raises:
        UserError: what is needed is neither complete, nor sent with it, nor in the queue; or a
            phase itself is in the queue: two jobs of it would undo each other's work.
    """
    sent = {step.name for step in plan.todo}
    goals = {step.name: step.goal for step in plan.todo}
    goals |= {need.phase: need for step in plan.todo for need in step.needs}
    seen = look([*goals.values()], plan.state)
    live = {one.goal.phase: one.sent.job for one in seen if one.live and one.sent is not None}
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
    """Make sure that no job in the queue uses what would be set aside.

    Raises:
        UserError: one does.
    """
    aside = {step.goal.run for step in plan.todo if step.standing.state == "again"}
    names = sorted(file.stem for file in (plan.state / "ledger").glob("*.jsonl")) if aside else []
    for one in look([Goal(phase=name, run=plan.runs / name) for name in names], plan.state):
        if not one.live or one.job is None or one.sent is None:
            continue
        for run in aside & {one.job.goal.run, *(need.run for need in one.job.needs)}:
            raise UserError(
                f"{one.goal.phase} is in the queue or runs, and uses {run}, which is outdated: job "
                f"{one.sent.job}; cancel it first (`cancel {one.goal.phase}`), or let it run"
            )


def _set_aside(steps: Sequence[Step], aside: dict[Path, Path], say: Say) -> None:
    """Rename what is outdated, and note where it was and is now."""
    for step in steps:
        # Scores and tables lie among what counts: only the file that says that they are done.
        old = step.goal.run if step.goal.kind in ("run", "set") else step.goal.marker()
        outdated = step.standing.state == "again" or step.goal.kind in ("scores", "table")
        if outdated and old.exists():
            aside[old] = set_aside(old)
            say(f"{step.name}: {step.standing.sentence}: {aside[old]}")


def _put_back(aside: Mapping[Path, Path]) -> None:
    for old, kept in aside.items():
        if not old.exists():
            kept.rename(old)
