"""Start an attempt, on the job's head node: check what it needs, and choose its nodes.

The batch script evaluates the `export` lines that this prints, before the job's steps.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lensdist.utils.errors import RunError, UserError
from lensdist.utils.launched import DEADLINE
from slurm import scheduler
from slurm.attempts import attempts
from slurm.job import Job, load_job
from slurm.job_side.command import ATTEMPT
from slurm.submission import snapshot


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
    job.outcome_folder(attempt).mkdir(parents=True, exist_ok=True)
    return Start(attempt, nodes[:usable], None if left is None else time.time() + left)


def main(path: str) -> int:
    """Start an attempt in a batch script: print `export …` lines."""
    try:
        job = load_job(Path(path))
        job_id = scheduler.own_id(os.environ)
        nodes = tuple(scheduler.hostnames(os.environ["SLURM_JOB_NODELIST"]))
        left = scheduler.seconds_left(os.environ["SLURM_JOB_ID"])
        start = start_attempt(job, job_id, nodes, left)
    except (UserError, RunError) as e:
        print(f"error: {e}", file=sys.stderr)
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
