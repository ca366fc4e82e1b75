"""What a node does with its phase: believe markers, build the command, pass signals on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lensdist.files import sha256, to_json, write_atomic
from slurm import jobs
from slurm.cluster import Cluster
from slurm.jobs import Goal, Job, Place, command, place, run_phase, variables
from tests.conftest import ROOT

pytestmark = pytest.mark.unit


def _job(tmp_path: Path, code: str = "", *needs: Goal, **cluster: object) -> Job:
    return Job(
        goal=Goal(phase="finetune", run=tmp_path / "finetune"),
        needs=needs,
        words=("-c", code),
        cluster=Cluster.model_validate(cluster),
        cwd=tmp_path,
    )


def _file(tmp_path: Path, job: Job) -> str:
    return str(write_atomic(tmp_path / "finetune.json", job.model_dump_json()))


def _complete(run: Path) -> None:
    write_atomic(run / "config.yaml", "task: mae\n")
    files = {"config.yaml": sha256(run / "config.yaml"), "export/model.safetensors": ""}
    write_atomic(run / "export" / "model.safetensors", b"weights")
    files["export/model.safetensors"] = sha256(run / "export" / "model.safetensors")
    write_atomic(run / "COMPLETE.json", to_json({"config": {}, "files": files}))


def _ends(tmp_path: Path, job: Job) -> str:
    with pytest.raises(SystemExit) as e:
        run_phase(_file(tmp_path, job))
    return str(e.value)


def test_a_phase_waits_for_no_one_and_says_so(tmp_path: Path) -> None:
    need = Goal(phase="pretrain", run=tmp_path / "pretrain")
    job = _job(tmp_path, "open('started', 'w')", need)
    assert "finetune not started: pretrain is not complete" in _ends(tmp_path, job)
    assert not (tmp_path / "started").exists()


def test_a_damaged_predecessor_counts_as_none(tmp_path: Path) -> None:
    _complete(tmp_path / "pretrain")
    (tmp_path / "pretrain" / "config.yaml").write_text("task: other\n")
    job = _job(tmp_path, "", Goal(phase="pretrain", run=tmp_path / "pretrain"))
    assert "was altered since its run was completed" in _ends(tmp_path, job)


def test_success_is_the_marker_not_the_exit_code(tmp_path: Path) -> None:
    good_code = _ends(tmp_path, _job(tmp_path, "pass"))
    assert "ended with code 0 and is not complete" in good_code
    _complete(tmp_path / "finetune")
    run_phase(_file(tmp_path, _job(tmp_path, "raise SystemExit(1)")))


def test_scores_count_for_the_weights_that_they_are_of(tmp_path: Path) -> None:
    run = tmp_path / "run"
    goal = Goal(phase="evaluate", run=run, split="test")
    assert not goal.reached()
    _complete(run)
    assert not goal.reached()
    weights = {"model.safetensors": sha256(run / "export" / "model.safetensors")}
    write_atomic(goal.marker(), to_json({"weights": weights}))
    assert goal.reached()
    write_atomic(goal.marker(), to_json({"weights": {"model.safetensors": "older"}}))
    assert not goal.reached()


def test_one_process_has_no_launcher(tmp_path: Path) -> None:
    job = _job(tmp_path, "pass")
    assert command(job, Place()) == [sys.executable, "-u", "-c", "pass"]
    assert variables(job) == {}  # a laptop's GPU is taken where there is one


def test_the_environment_of_a_job(tmp_path: Path) -> None:
    cpu = _job(
        tmp_path, executor="slurm", nodes=2, processes_per_node=2, cpus_per_task=8, env={"A": "b"}
    )
    found = variables(cpu)
    assert found["ACCELERATE_USE_CPU"] == "true"
    assert found["OMP_NUM_THREADS"] == "4"
    assert found["A"] == "b"
    assert "SIGUSR2" in found["PET_SIGNALS_TO_HANDLE"]
    assert "--cpu" not in command(cpu, Place())  # would start unconnected processes
    gpu = _job(tmp_path, executor="slurm", gpus_per_node=4, cpus_per_task=2)
    assert "ACCELERATE_USE_CPU" not in variables(gpu)
    assert variables(gpu)["OMP_NUM_THREADS"] == "1"


def test_a_node_finds_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames gpu[07-08]" ] && echo gpu07 gpu08\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[07-08]")
    monkeypatch.setenv("SLURM_NODEID", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "4040007")
    here = place(Cluster(executor="slurm", nodes=2))
    assert here == Place("1", "gpu07", "10007")
    words = " ".join(command(_job(tmp_path, executor="slurm", nodes=2), here))
    assert "--machine_rank 1 --main_process_ip gpu07 --main_process_port 10007" in words


def test_several_local_processes_meet_on_a_free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # in an interactive job, say
    here = place(Cluster(processes_per_node=2))
    assert (here.rank, here.head) == ("0", "127.0.0.1")
    assert int(here.port) > 1024


def test_gpus_that_the_user_chose_stay_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # submitit's doing
    monkeypatch.setenv(jobs.USERS_GPUS, "3")
    assert jobs._environment(_job(tmp_path))["CUDA_VISIBLE_DEVICES"] == "3"
    monkeypatch.delenv(jobs.USERS_GPUS)
    assert "CUDA_VISIBLE_DEVICES" not in jobs._environment(_job(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_signals_reach_the_run_and_the_job_waits_for_it(tmp_path: Path, number: int) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        "def saved(n, f):\n"
        "    time.sleep(0.5); pathlib.Path('saved').write_text(str(n)); sys.exit(75)\n"
        "signal.signal(signal.SIGUSR2, saved); signal.signal(signal.SIGTERM, saved)\n"
        "pathlib.Path('ready').touch(); time.sleep(60)\n"
    )
    file = _file(tmp_path, _job(tmp_path, code))
    node = subprocess.Popen(
        [sys.executable, "-c", f"from slurm.jobs import run_phase; run_phase({file!r})"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 30
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    node.send_signal(number)
    told = node.communicate(timeout=30)[1]
    assert (tmp_path / "saved").read_text() == str(int(number))
    assert node.returncode == 1  # saved is not complete: afterok must not start what needs it
    assert "ended with code 75" in told
    assert "Traceback" not in told
