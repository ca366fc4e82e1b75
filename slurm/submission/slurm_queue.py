"""Send jobs to SLURM through submitit, all of them or none.

A controller that does not answer may have taken a job all the same. Such a job is looked for by the
folder of its batch script. If nobody answers for minutes, or the command is interrupted, the
attempt log has it as sent under an unknown id and as cancelled: it will not run, and the next
command cancels it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lensdist.utils.errors import RunError
from slurm import Say, scheduler
from slurm.attempts import REFUSED, UNKNOWN, is_cancelled
from slurm.job import Job, Target
from slurm.job_side.run import run_phase
from slurm.monitor.status import query, query_log
from slurm.plan.sbatch import array_file, batches, slurm_executor
from slurm.session import options_of_sbatch, own_environment


class Unanswered(RunError):
    """SLURM did not answer, and may have the job."""


def queue(
    jobs: Mapping[str, Job], arrays: Mapping[str, str], queued: Mapping[str, str], say: Say
) -> None:
    """Send jobs that wait for each other, and whose files exist; arguments as for `dispatch`.

    Raises:
        RunError: sbatch refused a job, or did not answer; those before it are cancelled.
    """
    sent, script, names = {**queued}, "", list[str]()
    if ignored := options_of_sbatch():
        say(f"not used, as the cluster's settings decide: {', '.join(ignored)} of your shell")
    try:
        with own_environment():
            largest = scheduler.largest_array() if arrays else None
            for script, names, after in batches(jobs, arrays, sent, largest):
                _send(script, [jobs[name] for name in names], after, sent, say)
    except BaseException as e:  # whatever it is, no part of the chain may stay in the queue
        # Interrupted while it was sent, a job may be in the queue under an id that nobody knows.
        known = isinstance(e, Exception) and not isinstance(e, Unanswered)
        unknown = [] if known else [name for name in names if name not in sent]
        for name in unknown:
            jobs[name].log_sent(UNKNOWN)
        left = _cancel({name: sent[name] for name in jobs if name in sent})
        for name in (*left, *unknown):
            jobs[name].log("cancelled", sent.get(name, UNKNOWN))
        if isinstance(e, Unanswered):
            raise RunError(f"{script}: {e}; no phase will run, and you can send them again") from e
        if isinstance(e, Exception):
            for name in names:  # for `why`
                reason = f"{REFUSED}{str(e).strip().splitlines()[-1]}"
                jobs[name].log("ended", UNKNOWN, verdict="stop", kind="input", reason=reason)
            raise RunError(f"{script} was refused, so nothing is queued: {e}") from e
        raise


def cancel_leftovers(targets: Sequence[Target], state: Path, say: Say) -> None:
    """Cancel waiting jobs that were cancelled while SLURM did not answer.

    Raises:
        RunError: SLURM refused, or still does not answer.
    """
    logs = [(target, query_log(target, state)) for target in targets]
    left = [t for t, log in logs if log.sent and is_cancelled(log.events, log.sent.submission)]
    for one in query(left, state):
        waits = one.slurm is not None and one.slurm.state in scheduler.WAITING
        if waits and one.by_slurm and one.sent is not None:
            scheduler.cancel([one.sent.job])
            say(f"{one.target.phase}: job {one.sent.job} was left from a submission; cancelled")


def _cancel(ids: Mapping[str, str]) -> list[str]:
    """Cancel jobs; return the names of all if SLURM does not do so."""
    try:
        scheduler.cancel(sorted({job.partition("_")[0] for job in ids.values()}))
    except RunError:
        return [*ids]
    return []


def _send(
    script: str, jobs: Sequence[Job], after: Sequence[str], sent: dict[str, str], say: Say
) -> None:
    """Send a job, or an array of them; add their ids to `sent`."""
    first, *others = jobs
    array = bool(others) and not first.together
    shared = jobs if first.together else ()
    executor = slurm_executor(first, after, script if array else None, shared)
    if array:
        array_file(first.folder, script, 0).parent.mkdir(mode=0o700)
        for index, job in enumerate(jobs):
            os.symlink(f"../{job.file.name}", array_file(job.folder, script, index))
    ids = _ids(executor, script, jobs, say)
    # All ids first: an interruption must find every job that it has to cancel.
    sent |= {job.target.phase: one for job, one in zip(jobs, ids, strict=True)}
    for job in jobs:
        name = job.target.phase
        job.log_sent(sent[name])
        waits = [sent[n.phase] for n in job.needs if sent.get(n.phase, sent[name]) != sent[name]]
        say(f"{name}: job {sent[name]}" + (f", after {', '.join(waits)}" if waits else ""))


def _ids(executor: Any, script: str, jobs: Sequence[Job], say: Say) -> list[str]:
    """Send, and return the ids; those of a job that SLURM took without an answer, too."""
    files = [str(job.file) for job in jobs]
    try:
        if jobs[0].together:
            return [executor.submit(run_phase, files[0]).job_id] * len(jobs)
        if len(jobs) > 1:
            return [task.job_id for task in executor.map_array(run_phase, files)]
        return [executor.submit(run_phase, *files).job_id]
    except Exception as e:
        if not scheduler.is_away(str(e)) or "connect failure" in str(e):  # nobody heard it then
            raise
        most = f"for up to {math.ceil(sum(scheduler.pauses()) / 60)} minutes"
        say(f"{script}: SLURM does not answer; looking {most} whether it took the job")
        found = _look(jobs[0], f"{jobs[0].chain}-{script}")
        if not found:
            raise
        array = len(jobs) > 1 and not jobs[0].together
        return [f"{found}_{i}" if array else found for i in range(len(jobs))]


def _look(job: Job, name: str) -> str:
    """Return the id of a job that may have been sent; empty if SLURM does not have it.

    Raises:
        Unanswered: SLURM does not say so for minutes.
    """
    answers = 0
    for pause in scheduler.pauses():
        time.sleep(pause)
        try:
            found = scheduler.sent_from(job.folder).get(name, "")
        except RunError:
            continue
        answers += 1
        # It may answer questions before it takes what was sent earlier.
        if found or answers > 1:
            return found
    raise Unanswered("SLURM does not answer, and may have the job")
