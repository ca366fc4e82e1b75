"""A chain on this machine: attempts of phase after phase, as a job's batch script makes them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from lensdist.errors import RunError, UserError
from lensdist.files import to_json, write_atomic
from lensdist.outcome import node_name
from lensdist.sealed import read_json
from slurm.attempts import Ledger
from slurm.job import Job
from slurm.job_side.command import USERS_GPUS
from slurm.job_side.epilogue import sentence, settle
from slurm.job_side.prologue import Start, begin
from slurm.job_side.requeue_policy import Decision
from slurm.job_side.run import run_phase

_TAIL = 15  # lines of a failed phase's log to show
_POLL = 0.2  # s

Say = Callable[[str], None]


def run_here(jobs: Mapping[str, Job], ids: Path, say: Say) -> None:
    """Run phases one after the other, each until it is complete or given up.

    What needs a phase that was given up or cancelled is not started; other phases are. Ctrl-C and
    SIGTERM cancel what runs, which saves; nothing is started after them.

    Args:
        jobs: by name, each after those it needs.
        ids: where to write each job's id.
        say: told what happens, a sentence at a time.

    Raises:
        RunError: a phase is not complete.
        KeyboardInterrupt: asked to stop; what ran has left, and its end is written down.
    """
    failed: list[str] = []
    for job in jobs.values():  # those too that will not come to run: `resume` knows them then
        Ledger(job.ledger).append("sent", str(os.getpid()), job.folder.name)
    with _Stop() as stop:
        for phase, job in jobs.items():
            lost = any(need.phase in failed for need in job.needs)
            if lost or not _until_complete(phase, job, ids, stop, say):
                failed.append(phase)
            if stop.wishes:
                raise KeyboardInterrupt
    if failed:
        raise RunError(f"{failed[0]} is not complete; what needs it was not started")


class _Stop:
    """Ctrl-C, SIGTERM and SIGHUP: heard at once, heeded where nothing is half done.

    Attributes:
        wishes: how many there were.
    """

    def __init__(self) -> None:
        self.wishes = 0
        self._raises = False

    def __enter__(self) -> _Stop:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        heard = [n for n in numbers if signal.getsignal(n) != signal.SIG_IGN]  # as under nohup
        self._before = {n: signal.signal(n, self._hear) for n in heard}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.wishes += 1
        if self._raises:
            self._raises = False  # a second one would leave what saves because of the first
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Meanwhile the first of them is raised, as KeyboardInterrupt."""
        self._raises = True
        try:
            if self.wishes:
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = False


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """What is started meanwhile ignores Ctrl-C, of which submitit's controller kills its task."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _until_complete(phase: str, job: Job, ids: Path, stop: _Stop, say: Say) -> bool:
    if _cancelled(job):
        say(f"{phase}: cancelled, not started")
        return False
    say(f"{phase}: running")
    while True:
        decision = _Attempt(phase, job, ids, stop, say).run()
        if decision.verdict == "done":
            say(f"{phase}: complete, {job.goal.run}")
            return True
        say(sentence(phase, decision))
        if decision.verdict != "requeue":
            return False
        _pause(job, decision.delay, stop)
        if _cancelled(job):
            say(f"{phase}: cancelled, not started again")
            return False


def _pause(job: Job, seconds: float, stop: _Stop) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop.wishes and not _cancelled(job):
        time.sleep(_POLL)
    if stop.wishes:
        Ledger(job.ledger).append("cancelled", str(os.getpid()), job.folder.name)


def _cancelled(job: Job) -> bool:
    mine = (e for e in Ledger(job.ledger).events() if e.submission == job.folder.name)
    return any(event.what == "cancelled" for event in mine)


class _Attempt:
    """One attempt, in a process of submitit's or in this one."""

    def __init__(self, phase: str, job: Job, ids: Path, stop: _Stop, say: Say) -> None:
        self._phase, self._job, self._ids, self._stop, self._say = phase, job, ids, stop, say
        self._id = str(os.getpid())
        self._ledger = Ledger(job.ledger)

    def run(self) -> Decision:
        """Begin, run, settle; returns the decision.

        Raises:
            UserError: what the phase needs is not complete.
        """
        job = self._job
        start = begin(job, self._id, (node_name(),), 60.0 * job.cluster.walltime)
        self._inner(start)
        # No exit code passes through submitit; what the processes said tells more.
        return settle(job, self._id, start.attempt, 1, "RUNNING", again=False)

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
            with self._stop.raised():
                DebugExecutor(self._job.folder).submit(run_phase, self._file).exception()
        except SystemExit as e:
            if isinstance(e.code, str):
                self._say(f"error: {e.code}")
        except KeyboardInterrupt:  # the run was told, and has left
            self._ledger.append("cancelled", self._id, self._job.folder.name)

    def _in_a_process(self) -> None:
        from submitit.local.local import LocalExecutor

        executor = LocalExecutor(self._job.folder)
        executor.update_parameters(
            timeout_min=self._job.cluster.walltime,
            signal_delay_s=self._job.cluster.save_before_end,
            stderr_to_stdout=True,
        )
        with _deaf_to_ctrl_c():
            task = executor.submit(run_phase, self._file)
        self._id = task.job_id
        self._sent()
        self._say(f"{self._phase}: log {task.paths.stdout}")
        if _cancelled(self._job):  # by whoever could not know the process yet
            os.kill(int(self._id), signal.SIGTERM)
        told = 0
        while not task.done():
            if told < self._stop.wishes:  # each is passed on: one may come before the run listens
                told = self._stop.wishes
                self._cancel()
            time.sleep(_POLL)
        log = task.paths.stdout
        if not told and not self._reached() and log.exists():
            for line in log.read_text(errors="replace").splitlines()[-_TAIL:]:
                self._say(f"  | {line}")

    def _reached(self) -> bool:
        try:
            return self._job.goal.reached()
        except UserError:  # damaged, or with other settings: it is settled so
            return False

    def _cancel(self) -> None:
        self._ledger.append("cancelled", self._id, self._job.folder.name)
        self._say(f"{self._phase}: process {self._id} told to save and leave")
        os.kill(int(self._id), signal.SIGTERM)  # to submitit's controller, which passes it on

    @property
    def _file(self) -> str:
        return str(self._job.folder / f"{self._phase}.json")

    def _sent(self) -> None:
        self._ledger.append("sent", self._id, self._job.folder.name)
        known = {}
        with contextlib.suppress(OSError, ValueError):
            known = read_json(self._ids)
        write_atomic(self._ids, to_json({**known, self._phase: self._id}))
