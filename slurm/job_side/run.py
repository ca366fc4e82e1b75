"""An attempt on each node of a job: check the node, run the phase, pass signals on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

from lensdist.utils import outcome
from lensdist.utils.errors import RunError, UserError
from slurm.job import Job, load_job
from slurm.job_side.command import ATTEMPT, Place, command, environment, find_place
from slurm.job_side.node_health import agreed_port, check_nodes
from slurm.job_side.requeue_policy import EXIT_FULL
from slurm.job_side.staging import staged

_POLL = 0.5  # s; each time a node looks at the size of its own file, on a disk that all share
_SLOWER = 10  # another node may load torch so many times as slowly as this one
_PR_SET_PDEATHSIG = 1
_KILL_AFTER = 30  # s that a run which never started may take to stop


def run_phase(path: str) -> None:
    """Run the phase of a job file, on each of the job's nodes. submitit pickles this by name.

    The epilogue checks files to see whether the phase is complete, never exit codes: launchers
    exit with 1 after a run that saved and stopped, and gloo sometimes aborts after the end.

    Raises:
        SystemExit: with the command's code, or a sentence; submitit prints a traceback of any other
            exception.
    """
    try:
        job = load_job(Path(path))
        place = find_place(job.cluster)
        code = _run(job, place, job.outcome_folder(int(os.environ[ATTEMPT])))
    except (UserError, RunError) as e:
        sys.exit(f"error: {e}")
    if code:
        sys.exit(code if code > 0 else 128 - code)


def _run(job: Job, place: Place, outcomes: Path) -> int:
    """Check the node, run the command, and return its exit code."""
    child: subprocess.Popen[bytes] | None = None
    # A private folder: processes read pickles from the rendezvous file in it.
    own_disk = contextlib.ExitStack()
    meeting = tempfile.TemporaryDirectory(prefix="lensdist-")

    def forward(number: int, frame: FrameType | None) -> None:
        if child is None:
            sys.exit("asked to stop before the run started")
        child.send_signal(number)

    # These replace submitit's own handler, which would requeue the job while the run still saves.
    # Under `debug` the launcher's process runs the phase, and SIGTERM cancels the launcher.
    debug = job.cluster.executor == "debug"
    numbers = (signal.SIGUSR2,) if debug else (signal.SIGTERM, signal.SIGUSR2)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        # Before the check, in which nodes wait for each other.
        data = own_disk.enter_context(staged(job, lambda line: print(line, file=sys.stderr)))
        wanted = int(place.port) if place.count > 1 else 0
        problem = check_nodes(job, outcomes, int(place.rank), place.count, wanted)
        if problem:
            sys.exit(f"{job.target.phase}: {problem}")
        place = replace(place, port=str(agreed_port(outcomes) or place.port))
        spare = Path(meeting.name) / "reports"
        spare.mkdir()
        env = environment(job, place, outcomes, os.environ)
        env |= {outcome.SPARE: str(spare), **data}
        if place.count == 1 and not job.cluster.container:  # a container may have its own /tmp
            env["PET_RDZV_ENDPOINT"] = f"{meeting.name}/rendezvous"
        end_with_parent = _end_with_parent()
        child = subprocess.Popen(
            command(job, place), env=env, cwd=job.cwd, preexec_fn=end_with_parent
        )
        code = _wait(job, place, outcomes, child)
        for word in outcome.pass_on(spare, outcomes):
            print(f"error: {word.error} (process {word.rank})", file=sys.stderr, flush=True)
            code = EXIT_FULL if word.bad else code
        return code
    finally:
        if child is not None and child.poll() is None:  # Ctrl-C, or the executor's own time limit
            child.terminate()
            child.wait()
        meeting.cleanup()
        own_disk.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_parent() -> Callable[[], None] | None:
    """Return a function for a child process, which makes it get SIGTERM if this process is killed.

    Linux only; None elsewhere.
    """
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()  # before the fork, after which no lock is safe

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # the parent was killed before the call
            os._exit(128 + signal.SIGTERM)

    return ask


def _wait(job: Job, place: Place, outcomes: Path, child: subprocess.Popen[bytes]) -> int:
    """Wait for the command, and end it if its processes do not reach each other in time."""
    trains = "lensdist.train" in job.argv
    if job.cluster.preflight.enabled and trains:
        start = _Start(job, place, outcomes)
        while not start.complete():
            code = child.poll()
            if code is not None:
                return code
            if start.late():
                _stop(child)
                break
            time.sleep(_POLL)
    return child.wait()


class _Start:
    """How far the processes of this node have come, by the file of their reports.

    Other nodes' files are not read: a process is ready when it has reached all others.
    """

    def __init__(self, job: Job, place: Place, outcomes: Path) -> None:
        self._limits, self._place, self._outcomes = job.cluster.preflight, place, outcomes
        self._each, self._node = job.cluster.per_node, int(place.rank)
        self._own = range(self._node * self._each, (self._node + 1) * self._each)
        self._file = outcome.file_of(outcomes, self._node)
        self._size = 0
        self._ranks: dict[outcome.What, set[int]] = {
            "loaded": set(),
            "device": set(),
            "ready": set(),
        }
        self._began = time.monotonic()
        self._loaded: float | None = None

    def complete(self) -> bool:
        """Look at the file; return whether all processes of this node have reached all others."""
        with contextlib.suppress(OSError):
            size = os.stat(self._file).st_size
            if size != self._size:
                self._size = size
                for what, ranks in self._ranks.items():
                    ranks |= {word.rank for word in outcome.told(self._file, what)}
        if self._loaded is None and len(self._ranks["loaded"]) >= self._each:
            self._loaded = time.monotonic() - self._began
        return len(self._ranks["ready"]) >= self._each

    def late(self) -> bool:
        """Return whether they take too long; then the reason is in an exit report."""
        passed, patience = time.monotonic() - self._began, self._limits.seconds
        if self._loaded is None:
            if passed > self._limits.load_seconds:
                self._blame(
                    "loaded",
                    f"did not load torch within {self._limits.load_seconds} s; if its file system "
                    "is slow, raise preflight.load_seconds",
                )
                return True
        elif len(self._ranks["device"]) < self._each:
            if passed > self._loaded + patience:
                self._blame("device", f"did not show a working device within {patience} s")
                return True
        elif passed > self._loaded * (1 + _SLOWER) + patience:
            self._leave(
                [*self._own],
                "crashed",
                f"the processes did not find each other within {passed:.0f} s (head "
                f"{self._place.head}, port {self._place.port}); set the cluster's `interface`, or "
                "preflight.seconds",
            )
            return True
        return False

    def _blame(self, what: outcome.What, did: str) -> None:
        missing = [rank for rank in self._own if rank not in self._ranks[what]]
        names = ", ".join(map(str, missing))
        self._leave(missing, "device", f"{outcome.node_name()}: process {names} {did}")

    def _leave(self, ranks: list[int], kind: outcome.Kind, error: str) -> None:
        for rank in ranks:
            outcome.leave_for(self._outcomes, rank, kind, error, self._node)


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_KILL_AFTER)
    except subprocess.TimeoutExpired:
        child.kill()


if __name__ == "__main__":
    run_phase(sys.argv[1])
