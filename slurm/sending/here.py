"""A chain on this machine: attempts of phase after phase, as a job's batch script makes them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from lensdist.errors import RunError
from lensdist.files import to_json, write_atomic
from lensdist.outcome import node_name
from slurm.job import Job
from slurm.ledger import Ledger
from slurm.node.begin import Start, begin
from slurm.node.command import USERS_GPUS
from slurm.node.run import run_phase
from slurm.node.settle import sentence, settle
from slurm.node.verdict import Decision

_TAIL = 15  # lines of a failed phase's log to show
_PATIENCE = 60  # s that a run may take to save when it is interrupted

Say = Callable[[str], None]


def run_here(jobs: Mapping[str, Job], ids: Path, say: Say) -> None:
    """Run phases one after the other, each until it is complete or given up.

    What needs a phase that was given up is not started; other phases are.

    Args:
        jobs: by name, each after those it needs.
        ids: where to write each job's id.
        say: told what happens, a sentence at a time.

    Raises:
        RunError: a phase is not complete.
    """
    failed: list[str] = []
    for job in jobs.values():  # those too that will not come to run: `resume` knows them then
        Ledger(job.ledger).append("sent", str(os.getpid()), job.folder.name)
    for phase, job in jobs.items():
        if any(need.phase in failed for need in job.needs):
            failed.append(phase)
            continue
        say(f"{phase}: running")
        if _until_complete(phase, job, ids, say):
            say(f"{phase}: complete, {job.goal.run}")
        else:
            failed.append(phase)
    if failed:
        raise RunError(f"{failed[0]} is not complete; what needs it was not started")


def _until_complete(phase: str, job: Job, ids: Path, say: Say) -> bool:
    while True:
        decision = _Attempt(phase, job, ids, say).run()
        if decision.verdict == "done":
            return True
        say(sentence(phase, decision))
        if decision.verdict != "requeue":
            return False
        time.sleep(decision.delay)


class _Attempt:
    """One attempt, in a process of submitit's or in this one."""

    def __init__(self, phase: str, job: Job, ids: Path, say: Say) -> None:
        self._phase, self._job, self._ids, self._say = phase, job, ids, say
        self._id = str(os.getpid())
        self._ledger = Ledger(job.ledger)

    def run(self) -> Decision:
        """Begin, run, settle; returns the decision.

        Raises:
            UserError: what the phase needs is not complete.
            KeyboardInterrupt: after the run has saved and the end is written down.
        """
        job = self._job
        start = begin(job, self._id, (node_name(),), 60.0 * job.cluster.walltime)
        interrupted = False
        try:
            self._inner(start)
        except KeyboardInterrupt:
            interrupted = True
        # No exit code passes through submitit; what the processes said tells more.
        decision = settle(job, self._id, start.attempt, 1, "RUNNING", again=False)
        if interrupted:
            raise KeyboardInterrupt
        return decision

    def _inner(self, start: Start) -> None:
        from submitit.core.utils import environment_variables

        path = os.pathsep.join(filter(None, (str(self._job.code), os.environ.get("PYTHONPATH"))))
        more = {**start.variables(), "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        if gpus is not None:
            more[USERS_GPUS] = gpus
        with environment_variables(**more):
            if self._job.cluster.executor == "local":
                self._in_a_process()
            else:
                self._in_this_process()

    def _in_this_process(self) -> None:
        from submitit.local.debug import DebugExecutor

        self._sent()
        try:
            # Not result(): on any failure that opens a debugger, which waits for a terminal.
            DebugExecutor(self._job.folder).submit(run_phase, self._file).exception()
        except SystemExit as e:
            if isinstance(e.code, str):
                self._say(f"error: {e.code}")
        except KeyboardInterrupt:
            self._ledger.append("cancelled", self._id, self._job.folder.name)
            raise

    def _in_a_process(self) -> None:
        from submitit.local.local import LocalExecutor

        executor = LocalExecutor(self._job.folder)
        executor.update_parameters(
            timeout_min=self._job.cluster.walltime,
            signal_delay_s=self._job.cluster.save_before_end,
            stderr_to_stdout=True,
        )
        task = executor.submit(run_phase, self._file)
        self._id = task.job_id
        self._sent()
        self._say(f"{self._phase}: log {task.paths.stdout}")
        try:
            task.wait()
        except KeyboardInterrupt:  # the run has heard of it too, and saves
            self._ledger.append("cancelled", self._id, self._job.folder.name)
            end = time.monotonic() + _PATIENCE
            while not task.done() and time.monotonic() < end:
                time.sleep(0.2)
            raise
        if not self._job.goal.reached():
            for line in task.paths.stdout.read_text(errors="replace").splitlines()[-_TAIL:]:
                self._say(f"  | {line}")

    @property
    def _file(self) -> str:
        return str(self._job.folder / f"{self._phase}.json")

    def _sent(self) -> None:
        self._ledger.append("sent", self._id, self._job.folder.name)
        known = json.loads(self._ids.read_text()) if self._ids.exists() else {}
        write_atomic(self._ids, to_json({**known, self._phase: self._id}))
