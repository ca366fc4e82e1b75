"""What a node does with its phase: believe markers, build the command, pass signals on."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lensdist.utils import files, outcome
from lensdist.utils.errors import UserError
from lensdist.utils.files import sha256, to_json, write_atomic
from slurm.attempts import attempts
from slurm.config.cluster import Cluster
from slurm.job import Job, Target, load_job
from slurm.job_side import run
from slurm.job_side.command import (
    ATTEMPT,
    USERS_GPUS,
    Place,
    command,
    environment,
    find_place,
    free_port,
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
    monkeypatch.setenv("PATH", str(tmp_path))  # a container has none of SLURM's commands
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
    assert find_place(Cluster(executor="slurm", nodes=2, ports="2000-2009")).port == "2004"


def test_a_full_disk_is_given_up_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F11: the run's report has no room either."""
    words = (
        "import os, sys\n"
        "from lensdist.utils import outcome\n"
        "def full(*_, **__): raise OSError(28, 'No space left on device')\n"
        "add, folder = outcome._add, os.environ['LENSDIST_OUTCOME'] + '/'\n"
        "outcome._add = lambda path, *more: (\n"
        "    full() if str(path).startswith(folder) else add(path, *more))\n"
        "outcome.leave('failed', 'the checkpoint: No space left on device'); sys.exit(1)\n"
    )

    def full(spare: Path, folder: Path) -> list[outcome.Outcome]:
        return outcome.read(spare)

    monkeypatch.setattr(outcome, "pass_on", full)
    decision = _attempt(_job(tmp_path, words), monkeypatch)
    assert (decision.verdict, decision.kind) == ("stop", "failed")
    assert "No space left" in decision.reason


def test_the_port_is_of_the_range_and_free() -> None:
    """F9: another program's port is passed over; the first node's report tells the others."""
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        taken = other.getsockname()[1]
        assert free_port(Cluster(executor="slurm", ports=f"{taken}-65535"), taken) != taken
        assert free_port(Cluster(executor="slurm", ports=taken), taken) == taken  # the run says so
    for wrong in ("80", "70000", "3000-2000", "x"):
        with pytest.raises(ValueError, match="port"):
            Cluster(ports=wrong)


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
    left_over = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "1"}
    inherited |= left_over  # of the user's shell
    env = environment(job, Place(count=count), tmp_path / "reports", inherited)
    assert {name: env.get(name) for name in found} == found
    assert not left_over.keys() & env.keys()
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


_SAYS = """
import os, time
from lensdist.utils import files, outcome
for what in WHAT:
    for rank in "01":
        os.environ["RANK"] = rank
        outcome.announce(what, "cpu", None, 0.0)
time.sleep(300)
"""


@pytest.mark.parametrize(
    ("said", "kind", "reason"),
    [
        ((), "device", "process 0, 1 did not load torch within 4 s"),
        (("loaded",), "device", "process 0, 1 did not show a working device within 2 s"),
        (("loaded", "device"), "crashed", "the processes did not find each other within"),
    ],
)
def test_processes_that_do_not_meet(
    said: tuple[str, ...], kind: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Loading takes seconds on a busy machine: the first case alone waits for less.
    limits = {"seconds": 2, "load_seconds": 100 if said else 4}
    job = _job(tmp_path, "", processes_per_node=2, preflight={"min_free_gb": 0, **limits})
    argv = ("-c", _SAYS.replace("WHAT", repr(said)), "lensdist.train")
    monkeypatch.setattr(run, "_SLOWER", 0)
    monkeypatch.setattr(run, "command", lambda job, place: [sys.executable, *job.argv])
    began = time.monotonic()
    decision = _attempt(job.model_copy(update={"argv": argv}), monkeypatch)
    assert time.monotonic() - began < 200
    assert decision.kind == kind
    assert reason in decision.reason


class _Operations:
    """Counts what is read, listed and looked at below a folder."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        self.read: set[str] = set()
        below = str(folder)

        def counted(module: Any, name: str) -> None:
            real = getattr(module, name)

            def count(path: Any = ".", *more: Any, **named: Any) -> Any:
                if str(path).startswith(below):
                    self.counts[name] += 1
                    self.read |= {str(path)} if name == "open" else set()
                return real(path, *more, **named)

            patch.setattr(module, name, count)

        counted(io, "open")
        for name in ("listdir", "scandir", "stat"):
            counted(os, name)


def test_a_node_of_128_looks_at_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,024 processes get ready one after the other; each poll of a node is one `stat`."""
    nodes, each, polls = 128, 8, 40
    job = _job(tmp_path, "", executor="slurm", nodes=nodes, processes_per_node=each)
    job = job.model_copy(update={"argv": ("-m", "lensdist.train")})
    outcomes = job.outcome_folder(1)
    monkeypatch.setenv(outcome.FOLDER, str(outcomes))

    def say(what: outcome.What, rank: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv(outcome.NODE, str(rank // each))
        outcome.announce(what, "cuda", None, 1.0)

    monkeypatch.setattr(files, "sync", lambda handle: None)  # which takes seconds
    for rank in range(nodes * each):
        say("loaded", rank)
        say("device", rank)
    slept = 0

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += 1
        assert slept <= polls
        if slept == polls:
            for rank in range(5 * each, 6 * each):
                say("ready", rank)

    class Child:
        poll = staticmethod(lambda: None)
        wait = staticmethod(lambda: 7)

    child: Any = Child()
    monkeypatch.setattr(time, "sleep", sleep)
    count = _Operations(outcomes, monkeypatch)
    assert run._wait(job, Place("5", nodes, "gpu001", "10007"), outcomes, child) == 7
    assert slept == polls
    assert count.read == {str(outcome.file_of(outcomes, 5))}
    assert count.counts["open"] <= 6  # when its size has changed, and not at each poll
    assert count.counts["listdir"] == count.counts["scandir"] == 0
    assert count.counts["stat"] <= polls + 10  # `say` looks too


def test_reports_of_old_attempts_are_removed(tmp_path: Path) -> None:
    job = _job(tmp_path, "pass")
    other = job.folder / "attempts" / "pre-finetune-1"
    other.mkdir(parents=True)
    for _ in range(8):
        start_attempt(job, "7", ("here",), None)
    kept = {path.name for path in other.parent.iterdir()}
    assert kept == {other.name, *(f"finetune-{n}" for n in range(4, 9))}
    assert len(attempts(job.attempt_log.events())) == 8
