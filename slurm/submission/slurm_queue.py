"""Send jobs to SLURM through submitit, all of them or none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from lensdist.utils.errors import RunError
from lensdist.utils.files import to_json, write_atomic
from slurm import Say, scheduler
from slurm.job import Job
from slurm.job_side.run import run_phase
from slurm.plan.sbatch import array_file, dependencies, slurm_executor

# Variables of the session that submits, which may be a job itself; sbatch would pass them on.
_SESSION = ("SLURM_", "SUBMITIT_", "LENSDIST_", "TORCHELASTIC_", "PET_", "PMI", "MASTER_")
_SESSION_TOO = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK"}
_KEPT = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT"}


def queue(
    jobs: Mapping[str, Job],
    arrays: Mapping[str, str],
    queued: Mapping[str, str],
    ids: Path,
    say: Say,
) -> None:
    """Send jobs that wait for each other.

    Args:
        jobs: by name, each after those it needs; their files exist.
        arrays: the phase of each point of a sweep, which becomes one job array.
        queued: ids of jobs in the queue that these jobs need.
        ids: file for the jobs' ids.

    Raises:
        RunError: sbatch refused a job; those before it are cancelled.
    """
    sent, phase = {**queued}, ""
    try:
        with _without_session():
            for phase, group in groupby(jobs, key=lambda name: arrays.get(name, name)):
                _send(phase, [*group], jobs, sent, say)
                write_atomic(ids, to_json({name: sent[name] for name in jobs if name in sent}))
    except BaseException as e:  # whatever it is, no part of the chain may stay in the queue
        ours = {sent[name].partition("_")[0] for name in jobs if name in sent}
        with contextlib.suppress(RunError):
            scheduler.cancel(sorted(ours))
        if isinstance(e, Exception):
            raise RunError(f"{phase} was refused, so nothing is queued: {e}") from e
        raise


def _send(
    phase: str, names: Sequence[str], jobs: Mapping[str, Job], sent: dict[str, str], say: Say
) -> None:
    """Send a phase, or all points of a swept one; add their ids to `sent`."""
    after = dependencies(names, jobs, sent)
    if len(names) > 1 and after is not None:
        sent |= _send_array(phase, [jobs[name] for name in names], after)
    for name in names:
        job = jobs[name]
        if name not in sent:
            executor = slurm_executor(job, dependencies([name], jobs, sent) or [])
            sent[name] = executor.submit(run_phase, str(job.file)).job_id
        job.log("sent", sent[name])
        waits = [sent[need.phase] for need in job.needs if need.phase in sent]
        say(f"{name}: job {sent[name]}" + (f", after {', '.join(waits)}" if waits else ""))


def _send_array(phase: str, jobs: Sequence[Job], after: Sequence[str]) -> dict[str, str]:
    executor = slurm_executor(jobs[0], after, array=phase)
    array_file(jobs[0].folder, phase, 0).parent.mkdir(mode=0o700)
    for index, job in enumerate(jobs):
        os.symlink(f"../{job.file.name}", array_file(job.folder, phase, index))
    tasks = executor.map_array(run_phase, [str(job.file) for job in jobs])
    return {job.target.phase: task.job_id for job, task in zip(jobs, tasks, strict=True)}


@contextlib.contextmanager
def _without_session() -> Iterator[None]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(_SESSION) and name not in _KEPT) or name in _SESSION_TOO
    }
    for name in kept:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(kept)
