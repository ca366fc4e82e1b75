"""Run a chain on this machine: the attempts of phase after phase, as a batch script makes them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from lensdist.utils.errors import RunError
from lensdist.utils.outcome import node_name
from slurm import Say
from slurm.job import Job
from slurm.job_side.command import USERS_GPUS
from slurm.job_side.epilogue import describe, end_attempt
from slurm.job_side.prologue import Start, start_attempt
from slurm.job_side.requeue_policy import Decision
from slurm.job_side.run import run_phase
from slurm.monitor.logs import last_lines

_TAIL = 15  # lines of a failed phase's log to show
_POLL = 0.2  # s


def run_locally(
    jobs: Mapping[str, Job], say: Say, logged: Callable[[], None] = lambda: None
) -> None:
    """Run phases one after the other, each until it is complete or stopped.

    A phase is not started if it needs one that was stopped or cancelled; other phases are. Ctrl-C
    and SIGTERM cancel the running phase, which saves; no phase is started after that.

    Args:
        jobs: by name, each after those it needs.
        logged: called when the attempt logs show that the phases were sent.

    Raises:
        RunError: a phase is not complete.
        KeyboardInterrupt: asked to stop; the running phase has ended, and its end is logged.
    """
    failed: list[str] = []
    for job in jobs.values():  # all of them, so that `resume` finds those that never start
        job.log("sent", str(os.getpid()))
    logged()
    with _Stop() as stop:
        for phase, job in jobs.items():
            lost = any(need.phase in failed for need in job.needs)
            if lost or not _run_until_complete(job, stop, say):
                failed.append(phase)
            if stop.requests:
                raise KeyboardInterrupt
    if failed:
        raise RunError(f"{failed[0]} is not complete; phases that need it were not started")


class _Stop:
    """The count of stop requests: Ctrl-C, SIGTERM and SIGHUP. The loops act on them.

    Attributes:
        requests: their number.
    """

    def __init__(self) -> None:
        self.requests = 0
        self._raises = False

    def __enter__(self) -> _Stop:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # Not those that are ignored, as under nohup.
        heard = [n for n in numbers if signal.getsignal(n) != signal.SIG_IGN]
        self._before = {n: signal.signal(n, self._count) for n in heard}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.requests += 1
        if self._raises:
            self._raises = False  # a second one would interrupt a run that saves after the first
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Raise the first request as KeyboardInterrupt in the code inside `with`."""
        self._raises = True
        try:
            if self.requests:
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = False


def _run_until_complete(job: Job, stop: _Stop, say: Say) -> bool:
    phase = job.target.phase
    if _is_cancelled(job):
        say(f"{phase}: cancelled, not started")
        return False
    say(f"{phase}: running")
    while True:
        attempt = _Attempt(job, stop, say)
        decision = attempt.run()
        if decision.verdict == "done":
            say(f"{phase}: complete, {job.target.run}")
            return True
        attempt.print_log()
        say(describe(phase, decision))
        if decision.verdict != "requeue":
            return False
        end = time.monotonic() + decision.delay
        while time.monotonic() < end and not stop.requests and not _is_cancelled(job):
            time.sleep(_POLL)
        if stop.requests:
            job.log("cancelled", str(os.getpid()))
        if _is_cancelled(job):
            say(f"{phase}: cancelled, not started again")
            return False


def _is_cancelled(job: Job) -> bool:
    mine = (e for e in job.attempt_log.events() if e.submission == job.folder.name)
    return any(event.what == "cancelled" for event in mine)


class _Attempt:
    """One attempt, in a process of submitit's or in this one."""

    def __init__(self, job: Job, stop: _Stop, say: Say) -> None:
        self._job, self._stop, self._say = job, stop, say
        self._phase = job.target.phase
        self._id = str(os.getpid())
        self._log: Path | None = None

    def run(self) -> Decision:
        """Run prologue, phase and epilogue; return the epilogue's decision.

        Raises:
            UserError: a phase that this one needs is not complete.
        """
        job = self._job
        start = start_attempt(job, self._id, (node_name(),), 60.0 * job.cluster.walltime)
        self._run_phase(start)
        # submitit passes no exit code on; the exit reports do.
        return end_attempt(job, self._id, start.attempt, 1, "RUNNING", requeued=False)

    def print_log(self) -> None:
        """Print the end of its log, if it has one and was not asked to stop."""
        if self._log is not None and not self._stop.requests:
            for line in last_lines(self._log, _TAIL):
                self._say(f"  | {line}")

    def _run_phase(self, start: Start) -> None:
        from submitit.core.utils import environment_variables

        path = os.pathsep.join(filter(None, (str(self._job.code), os.environ.get("PYTHONPATH"))))
        more = {**start.variables(), "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        if gpus is not None:
            more[USERS_GPUS] = gpus
        with environment_variables(**more):
            if self._job.cluster.executor == "local":
                self._run_in_a_process()
            else:
                self._run_in_this_process()

    def _run_in_this_process(self) -> None:
        from submitit.local.debug import DebugExecutor

        self._job.log("sent", self._id)
        try:
            # Not result(): after a failure it opens a debugger, which waits for a terminal.
            with self._stop.raised():
                executor = DebugExecutor(self._job.folder)
                executor.submit(run_phase, str(self._job.file)).exception()
        except SystemExit as e:
            if isinstance(e.code, str):
                self._say(f"error: {e.code}")
        except KeyboardInterrupt:  # the run got the signal too, and has ended
            self._job.log("cancelled", self._id)

    def _run_in_a_process(self) -> None:
        from submitit.local.local import LocalExecutor

        executor = LocalExecutor(self._job.folder)
        executor.update_parameters(
            timeout_min=self._job.cluster.walltime,
            signal_delay_s=self._job.cluster.save_before_end,
            stderr_to_stdout=True,
        )
        # The new process ignores Ctrl-C, after which submitit's controller would kill its task.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            task = executor.submit(run_phase, str(self._job.file))
        finally:
            signal.signal(signal.SIGINT, before)
        self._id, self._log = task.job_id, task.paths.stdout
        self._job.log("sent", self._id)
        self._say(f"{self._phase}: log {self._log}")
        if _is_cancelled(self._job):  # by a command that did not have the process's id yet
            os.kill(int(self._id), signal.SIGTERM)
        passed_on = 0
        while not task.done():
            if passed_on < self._stop.requests:  # each one: the run may have missed the first
                passed_on = self._stop.requests
                self._job.log("cancelled", self._id)
                self._say(f"{self._phase}: process {self._id} asked to save and stop")
                os.kill(int(self._id), signal.SIGTERM)  # submitit's controller passes it on
            time.sleep(_POLL)
