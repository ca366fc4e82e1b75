"""An attempt on each node of a job: check the node, run the phase, pass signals on."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from lensdist.utils import outcome
from lensdist.utils.errors import RunError, UserError
from slurm.job import Job, load_job
from slurm.job_side.command import ATTEMPT, Place, command, environment, find_place
from slurm.job_side.node_health import check_nodes

_POLL = 0.5  # s; each time a folder that all nodes share is listed
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
        problem = check_nodes(job, outcomes, int(place.rank), place.count)
        if problem:
            sys.exit(f"{job.target.phase}: {problem}")
        env = environment(job, place, outcomes, os.environ)
        if place.count == 1 and not job.cluster.container:  # a container may have its own /tmp
            env["PET_RDZV_ENDPOINT"] = f"{meeting.name}/rendezvous"
        end_with_parent = _end_with_parent()
        child = subprocess.Popen(
            command(job, place), env=env, cwd=job.cwd, preexec_fn=end_with_parent
        )
        return _wait(job, place, outcomes, child)
    finally:
        if child is not None and child.poll() is None:  # Ctrl-C, or the executor's own time limit
            child.terminate()
            child.wait()
        meeting.cleanup()
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
    if not job.cluster.preflight.enabled or not trains:
        return child.wait()
    world = place.count * job.cluster.per_node
    end = time.monotonic() + job.cluster.preflight.seconds
    while len(outcome.ready(outcomes)) < world:
        code = child.poll()
        if code is not None:
            return code
        if time.monotonic() > end:
            _report_missing(job, place, outcomes)
            _stop(child)
            break
        time.sleep(_POLL)
    return child.wait()


def _report_missing(job: Job, place: Place, outcomes: Path) -> None:
    """Write the exit report of a process of this node that did not reach its device, or others."""
    patience = job.cluster.preflight.seconds
    first = int(place.rank) * job.cluster.per_node
    fit = {ready.rank for ready in outcome.devices(outcomes)}
    missing = [rank for rank in range(first, first + job.cluster.per_node) if rank not in fit]
    if missing:
        outcome.leave_for(
            outcomes,
            missing[0],
            "device",
            f"{outcome.node_name()}: process {', '.join(map(str, missing))} did not show a working "
            f"device within {patience:.0f} s",
        )
    else:
        outcome.leave_for(
            outcomes,
            first,
            "crashed",
            f"the processes did not find each other within {patience:.0f} s (head {place.head}, "
            f"port {place.port}); set the cluster's `interface`, or preflight.seconds",
        )


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_KILL_AFTER)
    except subprocess.TimeoutExpired:
        child.kill()
