"""An attempt on every node of a job: check the node, run the phase, pass signals on.

What submitit pickles is `run_phase` by name and a path.
"""

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

from lensdist import outcome
from lensdist.errors import RunError, UserError
from slurm.job import Job, load_job
from slurm.job_side.command import ATTEMPT, Place, command, environment, place
from slurm.job_side.node_health import check

_POLL = 0.5  # s; a look lists a folder that all nodes share
_PR_SET_PDEATHSIG = 1
_KILL_AFTER = 30  # s that a run which is told to leave before it began may take


def run_phase(path: str) -> None:
    """On every node of a job: run the phase once.

    Whether it is complete is asked of its files afterwards (`settle`), never of exit codes:
    launchers exit with 1 after a run that saved and left, and gloo's workers sometimes abort after
    all is done.

    Raises:
        SystemExit: with the command's code, or one sentence; submitit would make a traceback of
            any other exception.
    """
    try:
        job = load_job(Path(path))
        here = place(job.cluster)
        code = _run(job, here, job.words_of(int(os.environ[ATTEMPT])))
    except (UserError, RunError) as e:
        sys.exit(f"error: {e}")
    if code:
        sys.exit(code if code > 0 else 128 - code)


def _run(job: Job, here: Place, folder: Path) -> int:
    """Check the node, and run the command; its exit code."""
    child: subprocess.Popen[bytes] | None = None
    meeting = tempfile.TemporaryDirectory(prefix="lensdist-")  # nobody else's: it holds pickles

    def forward(number: int, frame: FrameType | None) -> None:
        if child is None:
            sys.exit("told to stop before it began")
        child.send_signal(number)

    # In place of submitit's own handler, which would requeue the job while the run still saves.
    # Where the launcher's own process runs the phase, SIGTERM is for the launcher: it cancels.
    debug = job.cluster.executor == "debug"
    numbers = (signal.SIGUSR2,) if debug else (signal.SIGTERM, signal.SIGUSR2)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        problem = check(job, folder, int(here.rank), here.count)
        if problem:
            sys.exit(f"{job.goal.phase}: {problem}")
        env = environment(job, here, folder, os.environ)
        if here.count == 1 and not job.cluster.container:  # which may have a /tmp of its own
            env["PET_RDZV_ENDPOINT"] = f"{meeting.name}/rendezvous"
        ask = _with_its_parent()
        child = subprocess.Popen(command(job, here), env=env, cwd=job.cwd, preexec_fn=ask)
        return _wait(job, here, folder, child)
    finally:
        if child is not None and child.poll() is None:  # Ctrl-C, or the executor's own time limit
            child.terminate()
            child.wait()
        meeting.cleanup()
        for number, handler in before.items():
            signal.signal(number, handler)


def _with_its_parent() -> Callable[[], None] | None:
    """For a child to call before its command: SIGTERM, so that it saves, if this process is killed.

    Linux only; None elsewhere.
    """
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()  # before the fork, after which no lock is safe

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # killed before it could be asked
            os._exit(128 + signal.SIGTERM)

    return ask


def _wait(job: Job, here: Place, folder: Path, child: subprocess.Popen[bytes]) -> int:
    """Wait for the command, and end it where its processes do not find each other in time."""
    patience = job.cluster.preflight.seconds
    trains = "lensdist.train" in job.words
    if not job.cluster.preflight.enabled or not trains:
        return child.wait()
    world = here.count * job.cluster.per_node
    end = time.monotonic() + patience

    def found() -> bool:
        return len(outcome.ready(folder)) >= world

    while not found():
        code = child.poll()
        if code is not None:
            return code
        if time.monotonic() > end:
            _give_up(job, here, folder, child, patience)
            break
        time.sleep(_POLL)
    return child.wait()


def _give_up(
    job: Job, here: Place, folder: Path, child: subprocess.Popen[bytes], patience: float
) -> None:
    """Say which process is missing, and end the command."""
    first = int(here.rank) * job.cluster.per_node
    mine = range(first, first + job.cluster.per_node)
    fit = {word.rank for word in outcome.devices(folder)}
    missing = [str(rank) for rank in mine if rank not in fit]
    if missing:
        outcome.leave_for(
            folder,
            int(missing[0]),
            "device",
            f"{outcome.node_name()}: process {', '.join(missing)} did not show a working device "
            f"within {patience:.0f} s",
        )
    else:
        outcome.leave_for(
            folder,
            first,
            "crashed",
            f"the processes did not find each other within {patience:.0f} s (head "
            f"{here.head}, port {here.port}); set the cluster's `interface`, or preflight.seconds",
        )
    child.terminate()
    try:
        child.wait(_KILL_AFTER)
    except subprocess.TimeoutExpired:
        child.kill()
