"""Send jobs to SLURM through submitit, all of them or none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence

from lensdist.utils.errors import RunError
from slurm import Say, scheduler
from slurm.job import Job
from slurm.job_side.run import run_phase
from slurm.plan.sbatch import array_file, batches, slurm_executor

# Variables of the session that submits, which may be a job itself; sbatch would pass them on.
_SESSION = ("SLURM_", "SUBMITIT_", "LENSDIST_", "TORCHELASTIC_", "PET_", "PMI", "MASTER_")
_SESSION_TOO = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK"}
_KEPT = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT"}


def queue(
    jobs: Mapping[str, Job], arrays: Mapping[str, str], queued: Mapping[str, str], say: Say
) -> None:
    """Send jobs that wait for each other, and whose files exist; arguments as for `dispatch`.

    Raises:
        RunError: sbatch refused a job; those before it are cancelled.
    """
    sent, script = {**queued}, ""
    try:
        with _without_session():
            for script, names, after in batches(jobs, arrays, sent):
                _send(script, [jobs[name] for name in names], after, sent, say)
    except BaseException as e:  # whatever it is, no part of the chain may stay in the queue
        ours = {sent[name].partition("_")[0] for name in jobs if name in sent}
        with contextlib.suppress(RunError):
            scheduler.cancel(sorted(ours))
        if isinstance(e, Exception):
            raise RunError(f"{script} was refused, so nothing is queued: {e}") from e
        raise


def _send(
    script: str, jobs: Sequence[Job], after: Sequence[str], sent: dict[str, str], say: Say
) -> None:
    """Send a job, or an array of them; add their ids to `sent`."""
    first, *others = jobs
    executor = slurm_executor(first, after, script if others else None)
    if others:
        array_file(first.folder, script, 0).parent.mkdir(mode=0o700)
        for index, job in enumerate(jobs):
            os.symlink(f"../{job.file.name}", array_file(job.folder, script, index))
        tasks = executor.map_array(run_phase, [str(job.file) for job in jobs])
    else:
        tasks = [executor.submit(run_phase, str(first.file))]
    # All ids first: an interruption must find every job that it has to cancel.
    sent |= {job.target.phase: task.job_id for job, task in zip(jobs, tasks, strict=True)}
    for job in jobs:
        name = job.target.phase
        job.log("sent", sent[name])
        waits = [sent[need.phase] for need in job.needs if need.phase in sent]
        say(f"{name}: job {sent[name]}" + (f", after {', '.join(waits)}" if waits else ""))


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
