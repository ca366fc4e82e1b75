"""Start an attempt, on the job's head node: check what it needs, and choose its nodes.

The batch script evaluates the `export` lines that this prints, before the job's steps.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lensdist.utils.errors import RunError, UserError, refusal
from lensdist.utils.files import to_json, write_atomic
from lensdist.utils.launched import DEADLINE
from slurm import scheduler
from slurm.attempts import attempts, is_cancelled
from slurm.job import Job, hours_file, load_job
from slurm.job_side.command import ATTEMPT
from slurm.job_side.shell import unfit_nodes
from slurm.monitor.hours import used_by_runs
from slurm.submission import snapshot

_REPORTED = 5  # attempts whose reports are kept: one or two files of each node


@dataclass(frozen=True)
class Start:
    """An attempt that starts."""

    attempt: int
    """Its number, from 1."""
    nodes: tuple[str, ...]
    deadline: float | None
    """When it will be killed, seconds since 1970; None: never."""

    def variables(self) -> dict[str, str]:
        """Return the environment variables that tell the run about it."""
        deadline = {} if self.deadline is None else {DEADLINE: f"{self.deadline:.0f}"}
        return {ATTEMPT: str(self.attempt), **deadline}


def start_attempt(job: Job, job_id: str, nodes: tuple[str, ...], left: float | None) -> Start:
    """Start an attempt, and log it.

    Args:
        job_id: SLURM's job id, or the local process's id.
        nodes: the job's nodes; the attempt uses as many as can share a step evenly.
        left: seconds until the job is killed; None: unknown.

    Raises:
        UserError: a phase that it needs is not complete, or the copy of the code was changed; this
            is logged too.
    """
    attempt = len(attempts(job.attempt_log.events())) + 1
    usable = max((n for n in job.counts if n <= len(nodes)), default=len(nodes))
    event = {"attempt": attempt, "step": job.step()}
    job.log("started", job_id, nodes=nodes[:usable], **event)
    try:
        snapshot.verify(job.code, job.state)
        for need in job.needs:
            if not need.reached():
                raise UserError(f"{need.phase} is not complete ({need.marker()})")
    except UserError as e:
        reason = f"{job.target.phase} not started: {e}"
        job.log("ended", job_id, verdict="stop", reason=reason, kind="input", **event)
        raise UserError(reason) from e
    if "--used" in job.argv:
        _write_hours(job)
    job.outcome_folder(attempt).mkdir(parents=True, exist_ok=True)
    job.forget_outcomes(attempt - _REPORTED)
    _make_submittable(job, job_id)
    return Start(attempt, nodes[:usable], None if left is None else time.time() + left)


def _write_hours(job: Job) -> None:
    """Write what the chain's phases have used, for the table, which does not know the launcher."""
    hours = used_by_runs(job.state)
    each = {str(run): {"nodes": one.nodes, "gpus": one.gpus} for run, one in hours.items()}
    file = hours_file(job.state, job.target.phase)
    file.parent.mkdir(exist_ok=True, mode=job.state.stat().st_mode & 0o777)
    write_atomic(file, to_json(each))


def _catch_up(job: Job, job_id: str) -> None:
    """Log what only this job knows: that it was sent, and what the shell said of earlier nodes.

    Raises:
        UserError: the phase was cancelled, and SLURM has not heard of it.
    """
    events = [e for e in job.attempt_log.events() if e.submission == job.folder.name]
    if is_cancelled(events, job.folder.name):
        raise UserError(f"{job.target.phase} was cancelled; `resume` sends it again")
    known = {node for event in events for node in event.excluded}
    for node, problem in unfit_nodes(scheduler.comment(os.environ["SLURM_JOB_ID"])).items():
        if node not in known:
            more = {"verdict": "requeue", "kind": "device", "excluded": (node,)}
            job.log("ended", job_id, step=job.step(), reason=problem, **more)
    sent = {e.job for e in events if e.what == "sent"}
    if sent and job_id not in sent:  # else the user's command is about to log it
        job.log_sent(job_id)


def _make_submittable(job: Job, job_id: str) -> None:
    """Write the file that submitit's task reads, if no command of the user's could do so.

    A job that another one has sent, or that was sent while SLURM did not answer, has none.
    """
    if job.cluster.executor != "slurm" or job.together:
        return
    from submitit.core.utils import DelayedSubmission, JobPaths

    from slurm.job_side.run import run_phase

    file = JobPaths(folder=job.folder, job_id=job_id).submitted_pickle
    if not file.exists():
        DelayedSubmission(run_phase, str(job.file)).dump(file)


def main(path: str) -> int:
    """Start an attempt in a batch script: print `export …` lines.

    Without any output the script takes the node for one on which nothing can run.
    """
    if not os.path.exists(path):
        print(f"error: {path} does not exist here", file=sys.stderr)
        return 1
    print(":", flush=True)
    try:
        job = load_job(Path(path))
        job_id = scheduler.own_id(os.environ)
        if job.together and (verdict := job.settled()):
            print(f"settled={0 if verdict == 'done' else 1}")
            return 0
        _catch_up(job, job_id)
        nodes = tuple(scheduler.hostnames(os.environ["SLURM_JOB_NODELIST"]))
        left = scheduler.seconds_left(os.environ["SLURM_JOB_ID"])
        start = start_attempt(job, job_id, nodes, left)
    except (UserError, RunError, OSError) as e:
        print(f"error: {(refusal(e) if isinstance(e, OSError) else None) or e}", file=sys.stderr)
        return 1
    exports = start.variables()
    if len(start.nodes) < len(nodes):
        print(f"{len(start.nodes)} of {len(nodes)} nodes share the step evenly", file=sys.stderr)
        size = str(len(start.nodes))
        exports |= dict.fromkeys(("SLURM_JOB_NUM_NODES", "SLURM_NNODES", "SLURM_NTASKS"), size)
    print("\n".join(f"export {name}={value}" for name, value in exports.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
