"""Each check of a node, passed and failed."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from slurm.job import Job
from slurm.job_side import node_checks
from slurm.job_side.command import USERS_GPUS
from slurm.job_side.node_health import examine, versions
from tests.unit.nodes import GOOD, H100, fake_smi, impatient, node_job

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _a_node_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "gpu07")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv(USERS_GPUS, raising=False)
    monkeypatch.setattr(node_checks, "_LEAST", 0.1)


def _problem(job: Job, clock: Callable[[], float] = time.time) -> str:
    """This node's, which names it and is one sentence."""
    found = examine(job, 0, clock).problem
    assert not found or (found.startswith("gpu07 ") and "\n" not in found)
    return found


def test_folders_that_are_not_mounted(tmp_path: Path) -> None:
    job = node_job(tmp_path)
    for lost in ("cwd", "code"):
        other = job.model_copy(update={lost: tmp_path / "scratch"})
        assert f"does not see {tmp_path / 'scratch'} (" in _problem(other)
    (tmp_path / "runs" / "tiny").symlink_to(tmp_path / "scratch")
    assert f"sees no folder at {tmp_path / 'runs' / 'tiny'}" in _problem(job)
    (tmp_path / "scratch").mkdir()
    assert _problem(job) == ""


@pytest.mark.parametrize(
    ("flags", "words"), [(0, "Permission denied"), (os.ST_RDONLY, "read-only")]
)
def test_a_read_only_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int, words: str
) -> None:
    job = node_job(tmp_path)
    allowed = os.access
    shut = tmp_path / "runs"  # root may write anywhere, so the system calls must say no
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p) != shut and allowed(p, mode))
    monkeypatch.setattr(os, "statvfs", lambda p: SimpleNamespace(f_flag=flags))
    problem = _problem(job)
    assert str(shut) in problem
    assert words in problem


def test_versions_must_be_those_of_the_sender(tmp_path: Path) -> None:
    sent = versions() | {"torch": "1.0", "lensdist": "0.0.0"}
    problem = _problem(node_job(tmp_path, sent))
    assert f"torch {versions()['torch']} instead of 1.0" in problem
    assert "lensdist" not in problem  # the snapshot's runs, whatever is installed
    assert "numpy" not in problem
    others: tuple[dict[str, object], ...] = (
        {"container": ("apptainer", "exec", "x.sif")},
        {"python": "/opt/conda/bin/python"},
        {"srun": {"container-image": "x"}},
    )
    for other in others:
        assert _problem(node_job(tmp_path, sent, **other)) == ""


@pytest.mark.parametrize(
    ("limit", "unit"), [("min_free_gb", "GB free"), ("min_write_mb_s", "MB/s")]
)
def test_a_full_or_slow_disk(tmp_path: Path, limit: str, unit: str) -> None:
    problem = _problem(node_job(tmp_path, preflight={limit: 1e9}))
    assert f"{unit} in {tmp_path / 'runs'}" in problem
    assert f"preflight.{limit} is 1e+09" in problem


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "finds the disk, or your quota, full in"),
        (errno.EDQUOT, "finds the disk, or your quota, full in"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_failing_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def fails(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    job = node_job(tmp_path)
    monkeypatch.setattr(os, "fsync", fails)
    assert words in _problem(job)
    assert [*(tmp_path / "runs").iterdir()] == []


def test_what_is_written_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that not even a killed process leaves it; on file systems without O_TMPFILE too."""
    seen: list[str] = []
    job, sync = node_job(tmp_path), os.fsync

    def record(handle: int) -> None:
        assert os.fstat(handle).st_size == 16_000_000
        seen.extend(os.listdir(tmp_path / "runs"))
        seen.append("synced")
        sync(handle)

    monkeypatch.setattr(os, "fsync", record)
    assert _problem(job) == ""
    monkeypatch.setattr(tempfile, "_O_TMPFILE_WORKS", False, raising=False)
    assert _problem(job) == ""
    assert seen == ["synced", "synced"]


@pytest.mark.parametrize(("off", "words"), [(3600, "s ahead of"), (-3600, "s behind")])
def test_a_wrong_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: float, words: str
) -> None:
    job = node_job(tmp_path)
    problem = _problem(job, lambda: time.time() + off)
    assert f"{words} that of {tmp_path / 'runs'}" in problem
    assert "preflight.max_clock_skew is 30" in problem
    assert "NTP" in problem
    wide = node_job(tmp_path, preflight={"max_clock_skew": 4000})
    assert _problem(wide, lambda: time.time() + off) == ""
    sync = os.fsync

    def an_hour(handle: int) -> None:
        sync(handle)
        os.utime(handle, (time.time() - 3600,) * 2)

    monkeypatch.setattr(os, "fsync", an_hour)  # a slow disk is not a wrong clock
    assert _problem(job) == ""


@pytest.mark.parametrize(("visible", "fit"), [("0,2", True), ("0,1", False), ("GPU-cc", False)])
def test_only_own_gpus_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, fit: bool
) -> None:
    """Where SLURM does not hide the others from nvidia-smi: 1 and 3 are other jobs' trouble."""
    rows = [("aa", 0), ("bb", 7), ("cc", 0), ("dd", "[GPU requires reset]")]
    fake_smi(tmp_path, "".join(H100.format(*row) for row in rows))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    problem = _problem(node_job(tmp_path, gpus_per_node=2))
    assert (problem == "") == fit
    if visible == "0,1":
        assert "7 uncorrected memory error(s) on NVIDIA H100 80GB HBM3 GPU-bb" in problem
    if visible == "GPU-cc":
        assert "has 1 GPU(s) of 4 by CUDA_VISIBLE_DEVICES=GPU-cc" in problem


def test_gpus_of_a_local_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smi(tmp_path, GOOD)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    job = node_job(tmp_path, executor="local", gpus_per_node=1)
    assert _problem(job) == ""  # all are the run's
    monkeypatch.setenv(USERS_GPUS, "2")
    assert "has 0 GPU(s) of 2 by CUDA_VISIBLE_DEVICES=2" in _problem(job)
    chosen = {"CUDA_VISIBLE_DEVICES": "0"}
    assert _problem(node_job(tmp_path, executor="local", gpus_per_node=1, env=chosen)) == ""


@pytest.mark.parametrize(
    ("output", "code", "words"),
    [
        ("NVIDIA-SMI has failed\nNo devices were found\n", 6, "fails (No devices were found)"),
        ("", 9, "fails (no output)"),
        (H100.format("aa", 0), 0, "has 1 GPU(s), and gpus_per_node is 2"),
        ("GPU 0000:3B:00.0 has fallen off the bus\n", 15, "fails (GPU 0000:3B:00.0 has fallen"),
        (f"Unable to determine the device handle for GPU0: Unknown Error\n{GOOD}", 0, "handle for"),
        (H100.format("aa", "[GPU requires reset]") + H100.format("bb", 0), 0, "requires reset"),
    ],
)
def test_gpus_that_do_not_work(tmp_path: Path, output: str, code: int, words: str) -> None:
    fake_smi(tmp_path, output, code)
    assert words in _problem(node_job(tmp_path, gpus_per_node=2))
    assert _problem(node_job(tmp_path)) == ""  # a job on CPUs does not use them


def test_a_broken_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smi(tmp_path, GOOD, before="sleep 60")
    job = node_job(tmp_path, gpus_per_node=2)
    assert "nvidia-smi that gave no answer (killed after" in _problem(impatient(job, 0.2))
    (tmp_path / "bin" / "nvidia-smi").write_bytes(b"\x7fELF of another machine")
    assert "Exec format error" in _problem(job)
    (tmp_path / "bin" / "nvidia-smi").unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert _problem(job) == ""  # the processes try their devices themselves


_WARNING = "WARNING: infoROM is corrupted at gpu 0000:3B:00.0\n"


@pytest.mark.parametrize(
    ("output", "code", "count", "visible"),
    [
        (H100.format("aa", "[N/A]"), 0, 2, "MIG-1,MIG-2"),  # parts of GPUs are not counted
        (GOOD + _WARNING, 14, 2, "0,1"),
        *((f"RTX 4090, GPU-aa, {no}, {no}\n", 0, 1, "0") for no in ("[N/A]", "[Not Supported]")),
    ],
)
def test_gpus_that_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    output: str,
    code: int,
    count: int,
    visible: str,
) -> None:
    fake_smi(tmp_path, output, code)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _problem(node_job(tmp_path, gpus_per_node=count)) == ""


def test_the_centre_s_own_check(tmp_path: Path) -> None:
    words = "[ $A = b ] && [ $PWD = {} ] && echo noise && echo 'lid open' && exit {}"
    for code, problem in ((0, ""), (3, "preflight.command: exit code 3, lid open;")):
        command = words.format(tmp_path, code)
        found = _problem(node_job(tmp_path, env={"A": "b"}, preflight={"command": command}))
        assert problem in found
        assert bool(found) == bool(code)


def test_a_check_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    command = "{ echo up; sleep 60; } > fifo & wait"
    monkeypatch.setattr(node_checks, "_LEAST", 0.5)
    job = impatient(node_job(tmp_path, preflight={"command": command}), 0.1)
    assert "did not end preflight.command (killed after" in _problem(job)
    end = time.monotonic() + 60
    while True:
        assert time.monotonic() < end
        try:
            if not os.read(reader, 10):  # nobody is left who could write
                break
        except BlockingIOError:
            time.sleep(0.02)
    os.close(reader)


def test_what_a_check_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    """A daemon that it starts has its output: until the file `stop`, or for a minute."""
    command = "(for i in $(seq 60); do [ -e stop ] && break; sleep 1; done) & echo started"
    job = impatient(node_job(tmp_path, preflight={"command": command}), 20)
    assert _problem(job) == ""
    (tmp_path / "stop").touch()
