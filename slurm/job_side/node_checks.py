"""The checks that a node must pass before a run starts on it; `node_health` runs them.

Each raises `Unfit` if the node does not pass.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from lensdist.utils.files import sync
from slurm.config.cluster import Preflight
from slurm.job import Job
from slurm.job_side.command import USERS_GPUS

ELSEWHERE = "tell the computing centre, or add the node to the cluster's `exclude`"
_OTHER_DISK = "set `runs` to another file system"

_MB = 10**6
_WRITTEN = 16  # MB
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LEAST = 1.0  # s that a command may always take, however late it is
_LONGEST = 300  # characters of a command's last line
_QUERY = "name,uuid,ecc.errors.uncorrected.volatile.total,temperature.gpu"
_BAD_INFOROM = 14  # nvidia-smi's exit code for a warning; the GPU still works
# What nvidia-smi prints about a GPU that no longer works, sometimes with exit code 0.
_BROKEN = ("requires reset", "is lost", "unknown error", "err!", "device handle", "off the bus")


class Unfit(Exception):
    """A failed check; the message continues after the node's name."""


def check_folders(job: Job) -> Path:
    """Check that the node sees the folders that the run needs, and can write the run's.

    Returns:
        The folder of the run, or its nearest parent that exists.
    """
    for path, what in ((job.cwd, "where the chain was sent from"), (job.code, "the code to run")):
        if not os.path.isdir(path):
            raise Unfit(
                f"does not see {path} ({what}): send the chain from a folder that all nodes see, "
                "or add the node to the cluster's `exclude`"
            )
    run = job.cwd / job.target.run
    place = next(path for path in (run, *run.parents) if os.path.lexists(path))
    if not os.path.isdir(place):
        raise Unfit(f"sees no folder at {place}, where the run {run} goes; is it mounted there?")
    if not os.access(place, os.W_OK | os.X_OK):
        locked = os.statvfs(place).f_flag & os.ST_RDONLY
        raise _unwritable(place, errno.EROFS if locked else errno.EACCES)
    return place


def check_versions(job: Job, here: Mapping[str, str]) -> None:
    """Check that the node has the package versions of the machine that sent the job."""
    if job.cluster.own_python:
        return
    differences = [
        f"{name} {here.get(name, 'missing')} instead of {sent}"
        for name, sent in job.versions.items()
        # lensdist itself comes from the copy of the code.
        if name != "lensdist" and here.get(name) != sent
    ]
    if differences:
        raise Unfit(
            f"differs from where the chain was sent from: {', '.join(differences)}; correct its "
            "environment, or send the chain again"
        )


def check_disk(limits: Preflight, place: Path, clock: Callable[[], float]) -> float:
    """Check free space and write rate where the run is written.

    Returns:
        The seconds that the clock is ahead of the file system's.
    """
    free = shutil.disk_usage(place).free / 1e9
    if free < limits.min_free_gb:
        raise Unfit(
            f"has {free:.3g} GB free in {place}, and preflight.min_free_gb is "
            f"{limits.min_free_gb:g}; make room, or {_OTHER_DISK}"
        )
    try:
        rate, skew = _try_disk(place, clock)
    except OSError as e:
        raise _unwritable(place, e.errno) from e
    if rate < limits.min_write_mb_s:
        raise Unfit(
            f"writes {rate:.3g} MB/s in {place}, and preflight.min_write_mb_s is "
            f"{limits.min_write_mb_s:g}; set `runs` to a faster file system"
        )
    return skew


def check_clock(limits: Preflight, place: Path, skew: float) -> None:
    """Check the node's clock, which is `skew` seconds ahead of the file system of `place`."""
    if abs(skew) > limits.max_clock_skew:
        raise Unfit(
            f"has a clock {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} that of {place} "
            f"and preflight.max_clock_skew is {limits.max_clock_skew:g}: checkpoints and logs of "
            "several nodes would have a wrong order; ask the computing centre to correct its NTP"
        )


def check_gpus(job: Job, end: float) -> None:
    """Check that nvidia-smi, until `end` at the latest, lists enough GPUs, and that they work.

    Without nvidia-smi (AMD) nothing is checked here: each process tries its device itself.
    """
    wanted = job.cluster.gpus
    if not wanted or shutil.which("nvidia-smi") is None:
        return
    argv = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    code, output = _run(argv, job, end)
    if code is None:
        raise Unfit(f"has an nvidia-smi that gave no answer ({output}); {ELSEWHERE}")
    if code not in (0, _BAD_INFOROM):
        raise Unfit(f"has an nvidia-smi that fails ({_last(output)}); {ELSEWHERE}")
    lines = [line.strip() for line in output.splitlines()]
    rows = [line for line in lines if line.count(",") >= 3]
    visible = _visible(job)
    ours = rows if visible is None else _named(visible, rows)
    for line in lines:
        if any(word in line.lower() for word in _BROKEN) and (line in ours or line not in rows):
            raise Unfit(f"has a GPU that does not work ({line}); {ELSEWHERE}")
    if len(ours) < wanted and not _sliced(visible):
        chosen = "" if visible is None else f" of {len(rows)} by CUDA_VISIBLE_DEVICES={visible}"
        raise Unfit(f"has {len(ours)} GPU(s){chosen}, and gpus_per_node is {wanted}; {ELSEWHERE}")
    for line in ours:
        name, uuid, errors, _ = (part.strip() for part in line.rsplit(",", 3))
        if errors.isdigit() and int(errors) > 0:  # [N/A] for a GPU without ECC
            raise Unfit(
                f"has {errors} uncorrected memory error(s) on {name} {uuid}, and 0 are allowed: "
                f"it needs a reset; {ELSEWHERE}"
            )


def run_own_check(job: Job, end: float) -> None:
    """Run the user's own check, `preflight.command`, until `end` at the latest."""
    command = job.cluster.preflight.command
    if not command:
        return
    code, output = _run(command, job, end)
    if code is None:
        raise Unfit(f"did not end preflight.command ({output}); {ELSEWHERE}")
    if code:
        raise Unfit(
            f"does not pass preflight.command: exit code {code}, {_last(output)}; {ELSEWHERE}"
        )


def _try_disk(place: Path, clock: Callable[[], float]) -> tuple[float, float]:
    """Return the write rate in MB/s, and the seconds that the clock is ahead of the disk's."""
    block = os.urandom(_MB)  # some file systems store zeros as a number
    # The file has no name, so nothing is left behind if this process is killed.
    with tempfile.TemporaryFile(dir=place, prefix=".preflight-") as file:
        start = time.perf_counter()
        for _ in range(_WRITTEN):
            file.write(block)
        file.flush()
        sync(file.fileno())
        rate = _WRITTEN / (time.perf_counter() - start)
        # A new time stamp: that of the writing is too old if the disk is slow.
        os.utime(file.fileno())
        return rate, clock() - os.fstat(file.fileno()).st_mtime


def _unwritable(place: Path, number: int | None) -> Unfit:
    if number in _FULL:
        return Unfit(f"finds the disk, or your quota, full in {place}; make room, or {_OTHER_DISK}")
    if number == errno.EROFS:
        return Unfit(f"sees {place}, where the run goes, read-only; {_OTHER_DISK}")
    why = os.strerror(number) if number else "no reason given"
    return Unfit(f"cannot write in {place}, where the run goes ({why}); allow it, or {_OTHER_DISK}")


def _visible(job: Job) -> str | None:
    """Return the run's CUDA_VISIBLE_DEVICES; None: all GPUs."""
    name = "CUDA_VISIBLE_DEVICES"
    inherited = USERS_GPUS if job.cluster.executor == "local" else name
    return job.cluster.env.get(name, os.environ.get(inherited))


def _sliced(visible: str | None) -> bool:
    """Return whether it names parts of GPUs (MIG); nvidia-smi's rows are whole GPUs."""
    return visible is not None and "MIG" in visible


def _named(visible: str, rows: list[str]) -> list[str]:
    """Return the rows that CUDA_VISIBLE_DEVICES names: `0,2`, or `GPU-5ad2…,GPU-17f0…`."""
    if _sliced(visible):
        return rows
    names = [name.strip() for name in visible.split(",")]
    return [
        row
        for index, row in enumerate(rows)
        if any(name == str(index) or (name.startswith("GPU-") and name in row) for name in names)
    ]


def _run(argv: str | list[str], job: Job, end: float) -> tuple[int | None, str]:
    """Run a command; in a shell if it is one string.

    Returns:
        Its exit code and output; or None and why, if it had to be killed.
    """
    limit = max(_LEAST, end - time.monotonic())
    # A file: reading a pipe would wait for every process that still has it open.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            argv,
            shell=isinstance(argv, str),
            cwd=job.cwd,
            env={**os.environ, **job.cluster.env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that all processes it started can be killed with it
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return None, f"killed after {limit:.0f} s"
        finally:
            if process.returncode is None:
                _kill(process)
        output.seek(0)
        return code, output.read().decode(errors="replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    # Not for ever: a process that hangs in a driver cannot be killed.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_LEAST)


def _last(output: str) -> str:
    """Return a command's last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:_LONGEST] if lines else "no output"
