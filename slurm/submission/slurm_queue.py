"""Jobs to SLURM through submitit, all of them or none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from lensdist.errors import RunError
from lensdist.files import to_json, write_atomic
from slurm import scheduler
from slurm.attempts import Ledger
from slurm.job import Job
from slurm.job_side.run import run_phase
from slurm.plan.sbatch import array_file, slurm_executor

# Of the session that submits, which may be a job itself: sbatch would hand them to the new one.
_THEIRS = ("SLURM_", "SUBMITIT_", "LENSDIST_", "TORCHELASTIC_", "PET_", "PMI", "MASTER_")
_THEIRS_TOO = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK"}
_CLIENTS = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT"}

Say = Callable[[str], None]


def queue(
    jobs: Mapping[str, Job],
    arrays: Mapping[str, str],
    queued: Mapping[str, str],
    ids: Path,
    say: Say,
) -> None:
    """Send jobs that wait for each other.

    Args:
        jobs: by name, each after those it needs; their files are written.
        arrays: of the points of a sweep, the phase whose array they belong to.
        queued: ids of jobs that are needed and in the queue already.
        ids: where to write each job's id.
        say: told what happens, a sentence at a time.

    Raises:
        RunError: sbatch refused one; those before it are cancelled.
    """
    sent, phase = {**queued}, ""
    try:
        with _without_this_session():
            for phase, group in groupby(jobs, key=lambda name: arrays.get(name, name)):
                _send(phase, [*group], jobs, sent, say)
                write_atomic(ids, to_json({name: sent[name] for name in jobs if name in sent}))
    except BaseException as e:  # half a chain is not what was asked for, whatever came between
        ours = {sent[name].partition("_")[0] for name in jobs if name in sent}
        with contextlib.suppress(RunError):
            scheduler.cancel(sorted(ours))
        if isinstance(e, Exception):
            raise RunError(f"{phase} was refused, so nothing is queued: {e}") from e
        raise


def _send(
    phase: str, names: Sequence[str], jobs: Mapping[str, Job], sent: dict[str, str], say: Say
) -> None:
    """Send a phase, or all points of a swept one."""
    after = _after(names, jobs, sent)
    if len(names) > 1 and after is not None:
        sent |= _send_array(phase, {name: jobs[name] for name in names}, after)
    for name in names:
        if name not in sent:
            executor = slurm_executor(jobs[name], _after([name], jobs, sent) or [])
            task = executor.submit(run_phase, str(jobs[name].folder / f"{name}.json"))
            sent[name] = task.job_id
        Ledger(jobs[name].ledger).append("sent", sent[name], jobs[name].folder.name)
        waits = [sent[need.phase] for need in jobs[name].needs if need.phase in sent]
        then = f", after {', '.join(waits)}" if waits else ""
        say(f"{name}: job {sent[name]}{then}")


@contextlib.contextmanager
def _without_this_session() -> Iterator[None]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(_THEIRS) and name not in _CLIENTS) or name in _THEIRS_TOO
    }
    for name in kept:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(kept)


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
