"""A site with GPUs that have a type, a partition without any, and arrays of at most five tasks."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lensdist.phases import completed
from tests.chains import ODD, jobs_of, submit, write_chain, write_cluster
from tests.conftest import ROOT
from tests.slurm.conftest import need_slurm
from tests.slurm.minislurm import MiniSlurm
from tests.slurm.watch import log_of

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

CONF = """\
GresTypes=gpu,tmpfs
MaxArraySize=5
PartitionName=cpu MaxTime=INFINITE Nodes=127.0.0.1
"""
GRES = """\
Name=gpu Type=a100 File={base}/device[0-3]
Name=tmpfs Count=200G Flags=CountOnly
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[MiniSlurm]:
    """Two nodes with four GPUs each, which are files."""
    need_slurm()
    base = Path(tempfile.mkdtemp(prefix="minislurm-"))
    more: dict[str, Any] = {"conf": CONF, "gres": GRES, "resources": "gpu:a100:4,tmpfs:200G"}
    with MiniSlurm(base, nodes=2, cpus=8, **more) as running:
        yield running
    shutil.rmtree(base, ignore_errors=True)


SEEN = "echo here: $SLURM_JOB_PARTITION"


def _sets(folder: Path, **phases: dict[str, Any]) -> Path:
    """A chain of simulated sets, with keys of the cluster for each."""
    simulate = {"family": "model_ii", "n_per_class": 10}
    text = {name: {"simulate": simulate, "cluster": more} for name, more in phases.items()}
    file = folder / "chain.yaml"
    file.write_text(json.dumps({"name": "sets", "runs": str(folder / "runs"), "phases": text}))
    return file


ASKED: dict[str, dict[str, Any]] = {
    "typed": {"gpus_per_node": "a100:2"},
    "by-gres": {"gpus_per_node": "a100:1", "gpu_request": "gres", "sbatch": {"gres": "tmpfs:50G"}},
    "by-task": {"gpus_per_node": 3, "gpu_request": "gpus-per-task"},
    "whole": {"gpus_per_node": 4, "gpu_request": "none"},
    "beside": {"gpus_per_node": 4, "sbatch": {"gres": "tmpfs:150G", "mem": None}},
}


def test_any_way_of_asking_for_gpus_is_granted(cluster: MiniSlurm, tmp_path: Path) -> None:
    """Each phase has one process, so that it gets one GPU, or the node. Two of them run.

    A set is simulated on the CPUs' partition, and a run on it is sent to the GPUs' one.
    """
    short: dict[str, Any] = {"setup": [SEEN, "exit 0"]}
    asked = {name: more if name == "by-task" else more | short for name, more in ASKED.items()}
    chain = _sets(tmp_path, light={"partition": "cpu"}, **asked)
    text = json.loads(chain.read_text())
    config, data = ROOT / "configs" / "mae" / "debug.yaml", ["data.path={light}"]
    text["phases"]["pretrain"] = {
        "train": str(config), "after": ["light"], "set": data, "processes": 1, "cluster": short
    }  # fmt: skip
    chain.write_text(json.dumps(text))
    usual: dict[str, Any] = {
        "executor": "slurm",
        "partition": "main",
        "gpus_per_node": 4,
        "cpus_per_task": 8,
        "python": sys.executable,  # else its build of torch for CPUs is refused
    }
    where = write_cluster(tmp_path, **usual, mem_gb=16, setup=[SEEN], walltime=20)
    submit("submit", chain, where, env=cluster.environment)
    jobs, runs = jobs_of(tmp_path / "runs"), tmp_path / "runs"
    states = {phase: cluster.finished(job, 120) for phase, job in jobs.items()}
    logs = {phase: log_of(runs, job) for phase, job in jobs.items()}
    assert states == dict.fromkeys(["light", *ASKED, "pretrain"], "COMPLETED"), logs
    assert "here: cpu" in logs["light"]
    assert all((runs / phase / "manifest.json").exists() for phase in ("light", "by-task"))
    shown = {phase: cluster.job(job) for phase, job in jobs.items()}
    tres = {
        phase: one.get("TresPerNode", one.get("TresPerTask", "")) for phase, one in shown.items()
    }
    assert tres["light"] == ""
    assert (tres["pretrain"], shown["pretrain"]["Partition"]) == ("gres:gpu:1", "main")
    assert shown["pretrain"]["StartTime"] >= shown["light"]["EndTime"]
    assert tres["typed"] == "gres:gpu:a100:1"
    assert tres["by-gres"] == "gres:gpu:a100:1,gres:tmpfs:50G"
    assert tres["by-task"] == "gres:gpu:1"
    assert set(tres["beside"].split(",")) == {"gres:gpu:1", "gres:tmpfs:150G"}
    assert shown["whole"]["OverSubscribe"] == "NO"
    assert (shown["light"]["NumCPUs"], shown["whole"]["NumCPUs"]) == ("4", "8")
    assert (shown["light"]["TimeLimit"], shown["light"]["Partition"]) == ("00:20:00", "cpu")
    assert {one.get("WCKey", "") for one in shown.values()} <= {"", "*"}


def test_a_large_sweep_whose_setup_fails(
    cluster: MiniSlurm, tiny_set: Path, tmp_path: Path
) -> None:
    folder = tmp_path / ODD
    folder.mkdir()
    chain = write_chain(folder, tiny_set)
    usual: dict[str, Any] = {"executor": "slurm", "partition": "main", "cpus_per_task": 1}
    where = write_cluster(folder, **usual, setup=["ls '/no such folder'"])
    sweep = ["--sweep", "pretrain.seed=0,1,2,3,4,5,6", "--at-once", "2"]
    submit("submit", chain, where, "pretrain", *sweep, env=cluster.environment)
    jobs = jobs_of(folder / "runs")
    points = [jobs[f"pretrain@pretrain.seed={seed}"] for seed in range(7)]
    (first, second) = dict.fromkeys(job.partition("_")[0] for job in points)
    assert points == [f"{first}_{i}" for i in range(5)] + [f"{second}_{i}" for i in range(2)]
    assert [cluster.finished(job, 120) for job in points] == ["FAILED"] * 7
    assert cluster.job(points[5])["StartTime"] >= cluster.job(points[4])["EndTime"]
    log = log_of(folder / "runs", points[6])
    assert "error: setup ended with exit code 2 at: ls '/no such folder'" in log
    assert completed(folder / "runs" / "pretrain@pretrain.seed=0") is None
    told = submit("logs", chain, where, "pretrain@pretrain.seed=6", env=cluster.environment).stdout
    assert "setup ended with exit code 2" in told
    told = submit("why", chain, where, "pretrain@pretrain.seed=6", env=cluster.environment).stdout
    assert "setup ended with exit code 2" in told
