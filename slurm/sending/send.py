"""A plan to its jobs: files in a submission's folder, and SLURM jobs that wait for each other."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from lensdist.config import save
from lensdist.errors import RunError, UserError
from lensdist.files import to_json, write_atomic
from slurm import scheduler
from slurm.job import Goal, Job
from slurm.ledger import Ledger
from slurm.node.preflight import versions
from slurm.node.run import run_phase
from slurm.planning.batch import array_file, slurm_executor
from slurm.planning.changes import set_aside
from slurm.planning.plan import ROOT, Plan
from slurm.planning.step import Step
from slurm.sending.here import run_here
from slurm.sending.snapshot import take
from slurm.watching.status import look

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
    aside = _set_aside(steps, say)
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
    try:
        dispatch(jobs, arrays, queued, folder, say)
    except RunError:
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
        write_atomic(folder / f"{name}.json", job.model_dump_json(indent=2))
    if next(iter(jobs.values())).cluster.executor == "slurm":
        _queue(jobs, arrays, queued, folder, say)
    else:
        run_here(jobs, folder / JOBS, say)


def new_submission(state: Path) -> Path:
    """A folder that nobody else may write to: submitit unpickles what it finds on the node."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
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


def _set_aside(steps: Sequence[Step], say: Say) -> dict[Path, Path]:
    """Rename what is outdated; where it was, and where it is now."""
    aside = {}
    for step in steps:
        # Scores and tables lie among what counts: only the file that says that they are done.
        old = step.goal.run if step.goal.kind in ("run", "set") else step.goal.marker()
        outdated = step.standing.state == "again" or step.goal.kind in ("scores", "table")
        if outdated and old.exists():
            aside[old] = set_aside(old)
            say(f"{step.name}: {step.standing.sentence}: {aside[old]}")
    return aside


def _put_back(aside: Mapping[Path, Path]) -> None:
    for old, kept in aside.items():
        if not old.exists():
            kept.rename(old)


def _queue(
    jobs: Mapping[str, Job],
    arrays: Mapping[str, str],
    queued: Mapping[str, str],
    folder: Path,
    say: Say,
) -> None:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    sent = {**queued}
    for phase, group in groupby(jobs, key=lambda name: arrays.get(name, name)):
        names = [*group]
        after = _after(names, jobs, sent)
        try:
            if len(names) > 1 and after is not None:
                sent |= _send_array(phase, {name: jobs[name] for name in names}, after)
            else:
                for name in names:
                    alone = _after([name], jobs, sent) or []
                    task = slurm_executor(jobs[name], alone).submit(
                        run_phase, str(folder / f"{name}.json")
                    )
                    sent[name] = task.job_id
        except (FailedJobError, FailedSubmissionError) as e:
            ours = {sent[name].partition("_")[0] for name in jobs if name in sent}
            scheduler.cancel(sorted(ours))  # half a chain is not what was asked for
            raise RunError(f"{phase} was refused, so nothing is queued: {e}") from e
        for name in names:
            Ledger(jobs[name].ledger).append("sent", sent[name], folder.name)
            waits = [sent[need.phase] for need in jobs[name].needs if need.phase in sent]
            then = f", after {', '.join(waits)}" if waits else ""
            say(f"{name}: job {sent[name]}{then}")
        write_atomic(folder / JOBS, to_json({name: sent[name] for name in jobs if name in sent}))


def _after(
    names: Sequence[str],
    jobs: Mapping[str, Job],
    sent: Mapping[str, str],
) -> list[str] | None:
    """Conditions that a group of jobs waits for; None where each needs conditions of its own."""
    conditions: list[str] = []
    before = [[sent[need.phase] for need in jobs[n].needs if need.phase in sent] for n in names]
    for column in zip(*before, strict=True) if len({len(b) for b in before}) == 1 else [None]:
        if column is None:
            return None
        if len({*column}) == 1:
            conditions.append(f"afterok:{column[0]}")
            continue
        ids, _, indices = zip(*(job.partition("_") for job in column), strict=True)
        if len({*ids}) > 1 or [*indices] != [str(i) for i in range(len(names))]:
            return None
        conditions.append(f"aftercorr:{ids[0]}")  # each task after its like
    ends = sorted({sent[o].partition("_")[0] for n in names for o in jobs[n].follows if o in sent})
    return conditions + [f"afterany:{job}" for job in ends]


def _send_array(phase: str, jobs: Mapping[str, Job], after: Sequence[str]) -> dict[str, str]:
    first = next(iter(jobs.values()))
    executor = slurm_executor(first, after, array=phase)
    array_file(first.folder, phase, 0).parent.mkdir(mode=0o700)
    for index, name in enumerate(jobs):
        os.symlink(f"../{name}.json", array_file(first.folder, phase, index))
    files: list[Any] = [str(first.folder / f"{name}.json") for name in jobs]
    tasks = executor.map_array(run_phase, files)
    return {name: task.job_id for name, task in zip(jobs, tasks, strict=True)}
