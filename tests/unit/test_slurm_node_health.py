"""What a node reports of itself, and what the nodes of a job tell each other."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lensdist.utils.files import write_atomic
from slurm.job import Job
from slurm.job_side import node_health
from slurm.job_side.node_health import (
    Report,
    agreed_port,
    bad_nodes,
    check_nodes,
    examine,
    versions,
)
from tests.conftest import ROOT
from tests.unit.nodes import GOOD, fake_smi, impatient, node_job

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _a_node_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "gpu07")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_healthy_node_has_no_problem(tmp_path: Path) -> None:
    fake_smi(tmp_path, GOOD)
    job = node_job(tmp_path, versions(), gpus_per_node=2, preflight={"command": "true"})
    assert examine(job, 3) == Report(host="gpu07", node=3)
    assert not (tmp_path / "runs" / "tiny").exists()


def _is_shared(job: Job, clock: Callable[[], float] = time.time) -> bool:
    """Whether this node's problem may be other nodes' too."""
    report = examine(job, 0, clock)
    assert report.problem
    return report.shared


def test_shared_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = node_job(tmp_path)
    assert _is_shared(job.model_copy(update={"code": tmp_path / "scratch"}))
    assert _is_shared(node_job(tmp_path, versions() | {"torch": "1.0"}))
    assert _is_shared(node_job(tmp_path, preflight={"min_free_gb": 1e9}))
    assert _is_shared(node_job(tmp_path, preflight={"min_write_mb_s": 1e9}))
    assert not _is_shared(job, lambda: time.time() + 3600)
    assert not _is_shared(node_job(tmp_path, preflight={"command": "false"}))
    fake_smi(tmp_path, GOOD)
    assert not _is_shared(node_job(tmp_path, gpus_per_node=4))
    assert not examine(job, 0).shared

    def stale(path: Path) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(shutil, "disk_usage", stale)
    assert _is_shared(job)


def test_versions_import_nothing() -> None:
    code = (
        "import sys\nfrom slurm.job_side.node_health import versions\nfound = versions()\n"
        "heavy = {'torch', 'torchvision', 'accelerate', 'deepspeed', 'numpy'}\n"
        "assert not heavy & {*sys.modules}\n"
        "import numpy, platform\nassert found['numpy'] == numpy.__version__\n"
        "assert found['python'] == platform.python_version()\nprint(*sorted(found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    packages = "accelerate deepspeed lensdist numpy python safetensors torch torchvision"
    assert done.stdout.split() == packages.split()


def test_no_check_where_none_is_wanted(tmp_path: Path) -> None:
    job = node_job(tmp_path, preflight={"enabled": False, "command": "touch ran; exit 1"})
    assert check_nodes(job, tmp_path / "attempt", 0, 2) == ""
    assert not (tmp_path / "attempt").exists()
    assert not (tmp_path / "ran").exists()


def _check_on(jobs: list[Job], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `check` says on nodes that start at the same time, each in a thread."""
    names = threading.local()
    monkeypatch.setattr(node_health, "node_name", lambda: names.host)

    def node(number: int) -> str:
        names.host = f"gpu{number:02d}"
        return check_nodes(jobs[number], folder, number, len(jobs))

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [*pool.map(node, range(len(jobs)))]


def test_all_nodes_are_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "attempt"
    assert _check_on([node_job(tmp_path)] * 3, folder, monkeypatch) == ["", "", ""]
    assert sorted(os.listdir(folder)) == [f"node-0000{n}.json" for n in range(3)]
    last = Report.model_validate_json((folder / "node-00002.json").read_text())
    assert (last.host, last.node, last.problem) == ("gpu02", 2, "")
    assert bad_nodes(folder) == []


def test_one_node_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, fit = tmp_path / "attempt", node_job(tmp_path)
    unfit = node_job(tmp_path, preflight={"command": "echo lid open; exit 1"})
    said = _check_on([fit, unfit, fit], folder, monkeypatch)
    own = said[1]
    assert own.startswith("gpu01 does not pass preflight.command")
    assert said == [f"not started: node 1: {own}", own, f"not started: node 1: {own}"]
    (bad,) = bad_nodes(folder)
    assert (bad.host, bad.problem, bad.shared) == ("gpu01", own, False)


def test_all_nodes_use_the_port_that_is_free_on_the_first(tmp_path: Path) -> None:
    job, folder = node_job(tmp_path, nodes=2), tmp_path / "attempt"
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        taken = other.getsockname()[1]
        assert check_nodes(impatient(job, 0.3), folder, 0, 2, taken)  # the other node is not there
        assert check_nodes(impatient(job, 0.3), folder, 1, 2, taken) == ""
        assert agreed_port(folder) not in (None, taken)
    assert agreed_port(tmp_path / "nothing") is None


def test_a_node_that_never_reports(tmp_path: Path) -> None:
    job = impatient(node_job(tmp_path), 0.3)
    folder = tmp_path / "attempt"
    write_atomic(folder / "node-00001.json", "{")  # torn: as good as none
    write_atomic(folder / "rank-00003.json", "{}")  # another's word
    said = check_nodes(job, folder, 0, 4)
    assert "not started: node(s) 1, 2, 3 of 4 did not report within 0.3 s" in said
    assert bad_nodes(folder) == []


def test_a_report_that_is_seen_late(tmp_path: Path) -> None:
    folder, job = tmp_path / "attempt", node_job(tmp_path)
    late = Report(host="gpu08", node=1, problem="gpu08 is on fire")

    def report() -> None:
        while not (folder / "node-00000.json").exists():
            time.sleep(0.01)
        (folder / "node-00001.json").write_text(late.model_dump_json()[:20])
        time.sleep(0.1)
        write_atomic(folder / "node-00001.json", late.model_dump_json())

    other = threading.Thread(target=report)
    other.start()
    said = check_nodes(job, folder, 0, 2)
    other.join()
    assert said == "not started: node 1: gpu08 is on fire"


def test_a_node_that_cannot_report_says_so_itself(tmp_path: Path) -> None:
    (tmp_path / "attempt").write_text("in the way")
    said = check_nodes(node_job(tmp_path), tmp_path / "attempt", 0, 2)
    assert said.startswith(f"gpu07 cannot write {tmp_path / 'attempt'} (")
    assert bad_nodes(tmp_path / "attempt") == []
    assert bad_nodes(tmp_path / "nowhere") == []
