"""Before an attempt, once in a job, on its head node: may it start, on which nodes, until when.

The batch script reads what this prints into its environment; the steps and the run see it there.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lensdist.errors import RunError, UserError
from lensdist.launched import DEADLINE
from slurm import scheduler
from slurm.attempts import Ledger, attempts
from slurm.job import Job, load_job
from slurm.job_side.command import ATTEMPT
from slurm.submission import snapshot


@dataclass(frozen=True)
class Start:
    """An attempt that begins.

    Attributes:
        attempt: its number, from 1.
        nodes: those that it uses.
        deadline: seconds since 1970 at which it will be killed; None: never.
    """

    attempt: int
    nodes: tuple[str, ...]
    deadline: float | None

    def variables(self) -> dict[str, str]:
        """What the run's environment says of it."""
        deadline = {} if self.deadline is None else {DEADLINE: f"{self.deadline:.0f}"}
        return {ATTEMPT: str(self.attempt), **deadline}


def begin(job: Job, job_id: str, nodes: tuple[str, ...], left: float | None) -> Start:
    """Begin an attempt, and write it down.

    Args:
        job: the phase.
        job_id: SLURM's, or the local process's.
        nodes: those that are there; as many of them are used as can share the step evenly.
        left: seconds until the job is killed; None: nobody knows.

    Raises:
        UserError: what the phase needs is not complete, or the code was altered since it was sent;
            that is written down too.
    """
    ledger = Ledger(job.ledger)
    attempt = len(attempts(ledger.events())) + 1
    usable = max((n for n in job.counts if n <= len(nodes)), default=len(nodes))
    event = {"attempt": attempt, "step": job.step()}
    ledger.append("started", job_id, job.folder.name, nodes=nodes[:usable], **event)
    try:
        snapshot.check(job.code, job.state)
        for need in job.needs:
            if not need.reached():
                raise UserError(f"{need.phase} is not complete ({need.marker()})")
    except UserError as e:
        reason = f"{job.goal.phase} not started: {e}"
        ended = {"verdict": "stop", "reason": reason, "kind": "input", **event}
        ledger.append("ended", job_id, job.folder.name, **ended)
        raise UserError(reason) from e
    job.words_of(attempt).mkdir(parents=True, exist_ok=True)
    return Start(attempt, nodes[:usable], None if left is None else time.time() + left)


def main(path: str) -> int:
    """In a batch script: print `export …` lines."""
    try:
        job = load_job(Path(path))
        job_id = scheduler.own_id(os.environ)
        nodes = tuple(scheduler.hostnames(os.environ["SLURM_JOB_NODELIST"]))
        start = begin(job, job_id, nodes, scheduler.seconds_left(os.environ["SLURM_JOB_ID"]))
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
