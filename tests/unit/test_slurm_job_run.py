"""What a node does with its phase: believe markers, build the command, pass signals on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lensdist.utils import outcome
from lensdist.utils.errors import UserError
from lensdist.utils.files import sha256, to_json, write_atomic
from slurm.config.cluster import Cluster
from slurm.job import Job, Target, load_job
from slurm.job_side.command import (
    ATTEMPT,
    USERS_GPUS,
    Place,
    command,
    environment,
    find_place,
)
from slurm.job_side.epilogue import end_attempt
from slurm.job_side.prologue import start_attempt
from slurm.job_side.requeue_policy import Decision
from slurm.job_side.run import run_phase
from tests.conftest import ROOT
from tests.unit.jobs import make_job
from tests.unit.queued import mark_complete

pytestmark = pytest.mark.unit

_SAVES = (
    "import pathlib, signal, sys, time\n"
    "from lensdist.utils import outcome\n"
    "def saved(n, f):\n"
    "    time.sleep(0.5); pathlib.Path('saved').write_text(str(n))\n"
    "    pathlib.Path('finetune/checkpoints/step-00000003').mkdir(parents=True)\n"
    "    outcome.leave('saved'); sys.exit(75)\n"
    "signal.signal(signal.SIGUSR2, saved); signal.signal(signal.SIGTERM, saved)\n"
    "pathlib.Path('ready').touch(); time.sleep(300)\n"
)


def _job(tmp_path: Path, code: str = "", *needs: Target, **cluster: object) -> Job:
    target = Target(phase="finetune", run=tmp_path / "finetune")
    given = {"preflight": {"min_free_gb": 0}} | cluster
    return make_job(target, tmp_path / "state", needs=needs, argv=("-c", code), cluster=given)


def _attempt(job: Job, monkeypatch: pytest.MonkeyPatch) -> Decision:
    """Begin, run, settle: what a batch script does."""
    start = start_attempt(job, "7", ("here",), None)
    monkeypatch.setenv(ATTEMPT, str(start.attempt))
    write_atomic(job.file, job.model_dump_json())  # tests change jobs
    code = 0
    try:
        run_phase(str(job.file))
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    return end_attempt(job, "7", start.attempt, code, "RUNNING", requeued=False)


def test_a_damaged_predecessor_counts_as_none(tmp_path: Path) -> None:
    mark_complete(tmp_path / "pretrain")
    (tmp_path / "pretrain" / "export" / "model.safetensors").write_text("other")
    job = _job(tmp_path, "", Target(phase="pretrain", run=tmp_path / "pretrain"))
    with pytest.raises(UserError, match="was altered since its run was completed"):
        start_attempt(job, "7", ("here",), None)


def test_success_is_the_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decision = _attempt(_job(tmp_path, "pass"), monkeypatch)
    assert decision.verdict == "requeue"  # it may have been anything: tried again, not for ever
    assert "ended with code 0, but is not complete" in decision.reason
    mark_complete(tmp_path / "finetune")
    assert _attempt(_job(tmp_path, "raise SystemExit(1)"), monkeypatch).verdict == "done"


def test_a_run_with_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"optim": {"schedule": {"kind": "constant"}}, "train": {"max_steps": 6}}
    for name in ("pretrain", "finetune"):
        mark_complete(tmp_path / name, asked)
    more = {**asked, "train": {"max_steps": 12}}
    need = Target(phase="pretrain", run=tmp_path / "pretrain", settings=more)
    with pytest.raises(UserError, match=r"settings \(train\.max_steps: 6 -> 12\) than pretrain"):
        start_attempt(_job(tmp_path, "", need), "7", ("here",), None)
    job = _job(tmp_path, "")
    for settings, verdict in ((asked, "done"), (more, "stop")):
        target = job.target.model_copy(update={"settings": settings})
        decision = _attempt(job.model_copy(update={"target": target}), monkeypatch)
        assert decision.verdict == verdict


def test_a_folder_that_others_may_write_to_is_not_trusted(tmp_path: Path) -> None:
    file = _job(tmp_path, "pass").file
    assert load_job(file).target.phase == "finetune"
    file.parent.chmod(0o750)
    with pytest.raises(UserError, match="chmod 700"):
        load_job(file)
    file.parent.chmod(0o700)
    file.write_text('{"target": "os.system"}')
    with pytest.raises(UserError, match="is not a job of this version"):
        load_job(file)


def test_the_file_of_a_chain_that_was_submitted_before_is_read(tmp_path: Path) -> None:
    job = _job(tmp_path, "pass")
    raw = job.model_dump(mode="json")
    raw["goal"], raw["words"] = raw.pop("target"), raw.pop("argv")
    assert load_job(write_atomic(job.file, to_json(raw))) == job


def test_scores_count_for_the_weights_that_they_are_of(tmp_path: Path) -> None:
    run = tmp_path / "run"
    target = Target(phase="evaluate", run=run, kind="scores")
    assert not target.reached()
    mark_complete(run)
    assert not target.reached()
    weights = {"model.safetensors": sha256(run / "export" / "model.safetensors")}
    write_atomic(target.marker(), to_json({"weights": weights}))
    assert target.reached()
    write_atomic(target.marker(), to_json({"weights": {"model.safetensors": "older"}}))
    assert not target.reached()


def test_a_node_finds_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames gpu[07-08]" ] && echo gpu07 gpu08\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[07-09]")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "gpu[07-08]")  # one is not needed
    monkeypatch.setenv("SLURM_NODEID", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "4040007")
    monkeypatch.setenv("LENSDIST_ATTEMPT", "1")
    here = find_place(Cluster(executor="slurm", nodes=2))
    assert here == Place("1", 2, "gpu07", "10007")
    words = " ".join(command(_job(tmp_path, executor="slurm", nodes=2), here))
    assert "--num_machines 2 --num_processes 2" in words
    assert "--machine_rank 1 --main_process_ip gpu07 --main_process_port 10007" in words
    monkeypatch.setenv("LENSDIST_ATTEMPT", "2")  # somebody else may listen on the first one's port
    assert find_place(Cluster(executor="slurm", nodes=2)).port == "16014"


def test_gpus_that_the_user_chose_stay_chosen(tmp_path: Path) -> None:
    job, submitits = _job(tmp_path), {"CUDA_VISIBLE_DEVICES": ""}
    chosen = environment(job, Place(), tmp_path, submitits | {USERS_GPUS: "3"})
    assert chosen["CUDA_VISIBLE_DEVICES"] == "3"
    assert "CUDA_VISIBLE_DEVICES" not in environment(job, Place(), tmp_path, submitits)


def test_the_command_of_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(_job(tmp_path, "pass"), Place()) == [sys.executable, "-u", "-c", "pass"]
    box = ["apptainer", "exec", "--nv", "x.sif"]
    job = _job(tmp_path, executor="slurm", gpus_per_node=2, container=box, python="/opt/bin/python")
    assert command(job, Place())[:6] == [*box, "/opt/bin/python", "-u"]
    cpus = _job(tmp_path, executor="slurm", nodes=2, processes_per_node=2)
    assert "--cpu" not in command(cpus, Place(count=2))  # would start unconnected processes
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # in an interactive job
    here = find_place(Cluster(processes_per_node=2))
    assert (here.rank, here.head) == ("0", "127.0.0.1")
    assert int(here.port) > 1024


@pytest.mark.parametrize(
    ("cluster", "count", "found"),
    [
        ({}, 1, {"ACCELERATE_USE_CPU": None, "OMP_NUM_THREADS": None}),  # a laptop's GPU is used
        (
            {"nodes": 2, "processes_per_node": 2, "cpus_per_task": 8, "env": {"A": "b"}},
            2,
            {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "4", "A": "b", "B": "c"},
        ),
        (
            {"gpus_per_node": 4, "cpus_per_task": 2, "interface": "ib0"},
            2,
            {
                "ACCELERATE_USE_CPU": None,
                "OMP_NUM_THREADS": "1",
                "NCCL_SOCKET_IFNAME": "ib0",
                "GLOO_SOCKET_IFNAME": "ib0",
                "LENSDIST_PREFLIGHT": "1",
                "LENSDIST_DEVICE": "cuda",
            },
        ),
    ],
)
def test_the_environment_of_a_node(
    tmp_path: Path, cluster: dict[str, object], count: int, found: dict[str, str | None]
) -> None:
    job = _job(tmp_path, **({"executor": "slurm"} | cluster if cluster else {}))
    inherited = {"PYTHONPATH": "/mine", "B": "c"}
    env = environment(job, Place(count=count), tmp_path / "reports", inherited)
    assert {name: env.get(name) for name in found} == found
    assert env["PYTHONPATH"] == f"{ROOT}{os.pathsep}/mine"
    assert env["LENSDIST_OUTCOME"] == str(tmp_path / "reports")
    assert ("SIGUSR2" in env.get("PET_SIGNALS_TO_HANDLE", "")) == (count > 1)


def _start_one_that_saves(tmp_path: Path, job: Job) -> subprocess.Popen[str]:
    words = f"from slurm.job_side.run import run_phase; run_phase({str(job.file)!r})"
    node = subprocess.Popen(
        [sys.executable, "-c", words],
        cwd=ROOT,
        env={**os.environ, ATTEMPT: "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    _until((tmp_path / "ready").exists)
    return node


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_signals_reach_the_run_and_the_job_waits_for_it(tmp_path: Path, number: int) -> None:
    job = _job(tmp_path, _SAVES)
    start = start_attempt(job, "7", ("here",), None)
    node = _start_one_that_saves(tmp_path, job)
    node.send_signal(number)
    assert "Traceback" not in node.communicate(timeout=200)[1]
    assert (tmp_path / "saved").read_text() == str(int(number))
    assert node.returncode == 75
    decision = end_attempt(job, "7", start.attempt, 75, "RUNNING", requeued=False)
    assert (decision.verdict, decision.kind, decision.delay) == ("requeue", "saved", 0)
    assert decision.reason == "asked to stop, and saved at step 3"


@pytest.mark.skipif(sys.platform != "linux", reason="nothing else tells a child of this")
def test_a_run_whose_parent_is_killed_saves_and_leaves(tmp_path: Path) -> None:
    job = _job(tmp_path, _SAVES)
    start = start_attempt(job, "7", ("here",), None)
    with _start_one_that_saves(tmp_path, job) as node:
        node.kill()
    _until(lambda: bool(outcome.read(job.outcome_folder(start.attempt))))
    assert (tmp_path / "saved").read_text() == str(int(signal.SIGTERM))
    assert outcome.read(job.outcome_folder(start.attempt))[0].kind == "saved"


def test_an_unfit_node_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "gpu07")
    check = {"command": "echo the fan is broken; false"}
    job = _job(tmp_path, "open('started', 'w')", preflight=check)
    decision = _attempt(job, monkeypatch)
    assert (decision.verdict, decision.exclude) == ("requeue", ("gpu07",))
    assert "the fan is broken" in decision.reason
    assert not (tmp_path / "started").exists()


def test_processes_that_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = _job(tmp_path, "import time; time.sleep(300)", preflight={"seconds": 2})
    job = job.model_copy(update={"argv": (*job.argv, "lensdist.train")})
    began = time.monotonic()
    decision = _attempt(job, monkeypatch)
    assert time.monotonic() - began < 200
    assert decision.kind == "device"
    assert "did not show a working device within 2 s" in decision.reason
