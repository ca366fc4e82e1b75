"""A plan becomes jobs of a fake SLURM: what waits for what, what is kept, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lensdist.config import load
from lensdist.config.schema import schema_of
from lensdist.utils.errors import RunError, UserError
from lensdist.utils.files import sha256, to_json, write_atomic
from slurm import scheduler
from slurm.attempts import AttemptLog
from slurm.job import load_job
from slurm.job_side import prologue
from slurm.job_side.node_health import versions
from slurm.monitor import status
from slurm.plan.builder import make_plan
from slurm.plan.plan import Plan
from slurm.submission import send as sending
from slurm.submission.send import send
from tests.chains import write_chain, write_cluster
from tests.fakes.slurm import FakeSlurm
from tests.unit.queued import fake, finish, sendings, waits

pytestmark = pytest.mark.unit
__all__ = ["fake"]


def _plan(tmp_path: Path, *words: str) -> Plan:
    chain = write_chain(tmp_path, tmp_path / "packed")
    return make_plan(chain, write_cluster(tmp_path, executor="slurm"), words)


def _send(tmp_path: Path, *words: str) -> list[str]:
    """Send from the chain of three phases; what is said."""
    said: list[str] = []
    send(_plan(tmp_path, *words), said.append)
    return said


def _six(tmp_path: Path) -> Plan:
    """images -> pretrain -> finetune, scratch -> their scores and a table."""
    text = json.loads(write_chain(tmp_path, tmp_path / "packed").read_text())
    pretrain, finetune, evaluate = text["phases"].values()
    images = {"simulate": {"family": "model_ii", "n_per_class": 40}}
    text["phases"] = {
        "images": images,
        "pretrain": pretrain | {"after": ["images"]},
        "finetune": finetune | {"after": ["images", "pretrain"]},
        "scratch": finetune | {"after": ["images", "pretrain"]},
        "evaluate": evaluate,
        "table": {"report": ["finetune", "scratch"]},
    }
    file = tmp_path / "six.json"
    file.write_text(json.dumps(text))
    return make_plan(file, write_cluster(tmp_path, executor="slurm"), ())


def test_each_phase_waits_for_those_it_needs(tmp_path: Path, fake: FakeSlurm) -> None:
    said: list[str] = []
    plan = _six(tmp_path)
    send(plan, said.append)
    assert waits(fake) == {
        "101": "",
        "102": "afterok:101",
        "103": "afterok:101,afterok:102",
        "104": "afterok:101,afterok:102",
        "105": "afterok:103",
        "106": "afterok:103,afterok:104,afterok:105",
    }
    names = ["images", "pretrain", "finetune", "scratch", "evaluate", "table"]
    jobs = fake.jobs
    assert [job["name"] for job in jobs.values()] == [f"tiny-{name}" for name in names]
    # Else what waits for a failed job would wait for ever.
    assert ["kill-on-invalid-dep" in job["flags"] for job in jobs.values()] == [False] + 5 * [True]
    assert all("requeue" in job["flags"] for job in jobs.values())
    assert said[1:3] == ["images: job 101", "pretrain: job 102, after 101"]


def test_only_jobs_in_the_queue_are_dependencies(tmp_path: Path, fake: FakeSlurm) -> None:
    _send(tmp_path, "pretrain")
    said = _send(tmp_path, "finetune")
    assert said[-1] == "finetune: job 102, after 101"
    assert waits(fake)["102"] == "afterok:101"
    fake.set("101", state="COMPLETED")
    fake.set("102", state="FAILED")
    finish(_plan(tmp_path).steps[0])
    said = _send(tmp_path)
    assert said[0] == "pretrain: complete already, skipped"
    assert waits(fake) == {"103": "", "104": "afterok:103"}


def test_what_can_never_start_is_not_sent(tmp_path: Path, fake: FakeSlurm) -> None:
    with pytest.raises(UserError, match="finetune needs pretrain, which is not complete"):
        _send(tmp_path, "finetune")
    _send(tmp_path, "pretrain")
    fake.set("101", state="FAILED")  # it is not in the queue any more
    with pytest.raises(UserError, match="finetune needs pretrain, which is not complete"):
        _send(tmp_path, "finetune")
    assert [*fake.jobs] == ["101"]


def test_a_torch_for_cpus_is_not_sent_to_gpus(
    tmp_path: Path, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F8: node after node would fail its check, and be blamed for it."""
    monkeypatch.setattr(sending, "versions", lambda: versions() | {"torch": "2.9.0+cpu"})
    with pytest.raises(UserError, match=r"torch 2\.9\.0\+cpu .* is a build for CPUs"):
        _send(tmp_path, "pretrain", "cluster.gpus_per_node=1")
    assert not fake.jobs
    assert not (tmp_path / "runs" / ".submit").exists()
    _send(tmp_path, "pretrain", "cluster.gpus_per_node=1", "cluster.python=/opt/bin/python")
    assert [*fake.jobs] == ["101"]


def test_a_refusal_leaves_nothing_in_the_queue(tmp_path: Path, fake: FakeSlurm) -> None:
    fake.refuse("Invalid account", after=2)
    with pytest.raises(RunError, match=r"evaluate was refused, so nothing is queued: .*account"):
        _send(tmp_path)
    assert {job: found["state"] for job, found in fake.jobs.items()} == {
        "101": "CANCELLED",
        "102": "CANCELLED",
    }
    (event,) = AttemptLog(tmp_path / "runs" / ".submit" / "ledger" / "evaluate.jsonl").events()
    assert (event.what, event.verdict) == ("ended", "stop")
    assert "Invalid account" in event.reason
    fake.refuse("")
    _send(tmp_path)  # they are not taken for queued
    assert waits(fake) == {"103": "", "104": "afterok:103", "105": "afterok:104"}


def test_what_is_in_the_queue_is_not_sent_twice(tmp_path: Path, fake: FakeSlurm) -> None:
    _send(tmp_path, "pretrain")
    for state in ("PENDING", "RUNNING", "REQUEUED"):
        fake.set("101", state=state)
        with pytest.raises(UserError, match="pretrain is in the queue or runs already: job 101"):
            _send(tmp_path)
    assert [*fake.jobs] == ["101"]
    assert len(sendings(tmp_path / "runs" / ".submit")) == 1


def test_outdated_runs_are_set_aside(tmp_path: Path, fake: FakeSlurm) -> None:
    _send(tmp_path, "pretrain")
    run = finish(_plan(tmp_path).steps[0])
    before = {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    fake.set("101", state="COMPLETING")  # its job still writes its last words
    other = ("pretrain", "pretrain.optim.lr=0.5")
    with pytest.raises(UserError, match="is in the queue or runs already"):
        _send(tmp_path, *other)
    assert run.exists()
    fake.set("101", state="COMPLETED")
    said = _send(tmp_path, *other)
    assert not run.exists()
    (aside,) = run.parent.glob("pretrain.before-*")
    assert said[0].endswith(f"the old one is kept under another name: {aside}")
    assert {p.relative_to(aside): p.read_bytes() for p in aside.rglob("*") if p.is_file()} == before
    assert waits(fake) == {"102": ""}


def test_a_run_that_another_phase_reads_is_not_set_aside(tmp_path: Path, fake: FakeSlurm) -> None:
    plan = _plan(tmp_path)
    finish(plan.steps[0])
    run = finish(plan.steps[1])
    _send(tmp_path, "evaluate")
    fake.set("101", state="RUNNING")
    with pytest.raises(UserError, match="evaluate is in the queue or runs"):
        _send(tmp_path, "finetune", "finetune.optim.lr=0.5")
    assert run.exists()


def test_outdated_scores_do_not_count(tmp_path: Path, fake: FakeSlurm) -> None:
    plan = _plan(tmp_path)
    finish(plan.steps[0])
    run = finish(plan.steps[1])
    weights = {"model.safetensors": sha256(run / "export" / "model.safetensors")}
    write_atomic(run / "eval" / "test.json", to_json({"weights": weights, "code": {"gone.py": ""}}))
    assert _send(tmp_path)[-1] == "evaluate: job 101"
    assert not plan.steps[2].target.reached()


def test_a_submission_holds_all_that_its_jobs_need(tmp_path: Path, fake: FakeSlurm) -> None:
    plan = _plan(tmp_path, "pretrain.seed=7")
    before = os.umask(0o002)
    try:
        send(plan, lambda sentence: None, "the line")
    finally:
        os.umask(before)
    (folder,) = sendings(plan.state)
    for private in (plan.state, folder):  # its files are executed
        assert private.stat().st_mode & 0o777 == 0o700
    for step, number in zip(plan.steps, fake.jobs, strict=True):
        job = load_job(folder / f"{step.name}.json")
        assert (job.target, job.needs, job.cluster) == (step.target, step.needs, step.cluster)
        assert (job.folder, job.state, job.cwd) == (folder, plan.state, Path.cwd())
        assert job.versions == versions()
        assert job.submitted == "the line"
        assert (job.code / "lensdist" / "a.py").read_text() == "A = 1\n"
        assert f"slurm.job_side.prologue {folder / step.name}.json" in fake.jobs[number]["script"]
        events = job.attempt_log.events()
        assert [(e.what, e.job, e.submission) for e in events] == [("sent", number, folder.name)]
    # Resolved: an edited preset does not change what waits.
    file = load_job(folder / "pretrain.json").argv[-1]
    assert load(Path(file), schema=schema_of) == plan.steps[0].config


def test_nothing_is_done_while_the_controller_is_away(tmp_path: Path, fake: FakeSlurm) -> None:
    _send(tmp_path, "pretrain")
    run = finish(_plan(tmp_path).steps[0])
    fake.set("101", state="COMPLETED")
    fake.down()
    with pytest.raises(RunError, match="Unable to contact slurm controller"):
        _send(tmp_path, "pretrain.optim.lr=0.5")
    assert run.exists()
    assert len(sendings(tmp_path / "runs" / ".submit")) == 1
    assert [call[0] for call in fake.calls].count("sbatch") == 1


def test_a_job_that_was_queued_without_an_answer_is_found(
    tmp_path: Path, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F3: sbatch times out, and the job starts when the controller is back."""
    monkeypatch.setattr(scheduler, "_AWAY", (0, 0, 0))
    fake.lose_answer()
    _send(tmp_path)
    assert waits(fake) == {"101": "", "102": "afterok:101", "103": "afterok:102"}
    log = AttemptLog(tmp_path / "runs" / ".submit" / "ledger" / "pretrain.jsonl")
    assert [(e.what, e.job) for e in log.events()] == [("sent", "101")]


def test_what_was_not_queued_is_refused_though_slurm_was_slow(
    tmp_path: Path, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "_AWAY", (0, 0, 0))
    fake.refuse("Socket timed out on send/recv operation", after=1)
    with pytest.raises(RunError, match="finetune was refused, so nothing is queued"):
        _send(tmp_path)
    assert [job["state"] for job in fake.jobs.values()] == ["CANCELLED"]


def test_what_a_silent_controller_may_have_does_not_run(
    tmp_path: Path, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(scheduler, "_AWAY", (0, 0, 0))
    run = finish(_plan(tmp_path).steps[0])
    other = "pretrain.optim.lr=0.5"
    fake.lose_answer(stays_down=True)
    with pytest.raises(RunError, match="SLURM does not answer, and may have the job"):
        _send(tmp_path, other)
    assert run.exists()  # back where it was
    assert [job["state"] for job in fake.jobs.values()] == ["PENDING"]
    (folder,) = sendings(tmp_path / "runs" / ".submit")
    fake.down(False)
    # If it starts before any command looks, it does not run.
    monkeypatch.setenv("SLURM_JOB_ID", "101")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu7")
    assert prologue.main(str(folder / "pretrain.json")) == 1
    assert "was cancelled" in capsys.readouterr().err
    # The next command shows it, and the next one that sends takes it back.
    targets = [step.target for step in _plan(tmp_path, other).steps]
    (pretrain, *_) = status.query(targets, tmp_path / "runs" / ".submit")
    assert pretrain.slurm is not None
    assert (pretrain.slurm.job, pretrain.live) == ("101", True)
    said = _send(tmp_path, other)
    assert any("job 101 was left from a submission; cancelled" in line for line in said)
    assert {j: job["state"] for j, job in fake.jobs.items()} == {
        "101": "CANCELLED",
        **dict.fromkeys(("102", "103", "104"), "PENDING"),
    }


def test_a_job_whose_sending_was_interrupted_does_not_run(
    tmp_path: Path, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a controller that hangs, which takes the job all the same."""

    def interrupted(*_: Any) -> str:
        raise KeyboardInterrupt

    fake.lose_answer()
    with monkeypatch.context() as here:
        here.setattr("slurm.submission.slurm_queue._look", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _send(tmp_path, "pretrain")
    assert [job["state"] for job in fake.jobs.values()] == ["PENDING"]
    said = _send(tmp_path, "pretrain")
    assert any("job 101 was left from a submission; cancelled" in line for line in said)
    assert {j: job["state"] for j, job in fake.jobs.items()} == {
        "101": "CANCELLED", "102": "PENDING",
    }  # fmt: skip


def test_jobs_that_could_not_be_taken_back_are_so_later(
    tmp_path: Path, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "_AWAY", (0, 0, 0))

    def lost(sentence: str) -> None:  # while the second phase is sent
        if sentence.startswith("pretrain: job"):
            fake.down()

    with pytest.raises(RunError):
        send(_plan(tmp_path), lost)
    assert waits(fake) == {"101": ""}
    fake.down(False)
    _send(tmp_path)
    assert fake.jobs["101"]["state"] == "CANCELLED"
    assert waits(fake) == {"102": "", "103": "afterok:102", "104": "afterok:103"}


def test_two_commands_do_not_send_at_once(tmp_path: Path, fake: FakeSlurm) -> None:
    """F15: the second is refused, and its turn comes when the first has ended."""
    refused: list[UserError] = []

    def second(sentence: str) -> None:
        if sentence.startswith("submission") and not refused:
            with pytest.raises(UserError, match="another command is sending") as e:
                _send(tmp_path)
            refused.append(e.value)

    send(_plan(tmp_path, "pretrain"), second)
    assert len(refused) == 1
    assert [*fake.jobs] == ["101"]
    fake.set("101", state="COMPLETED")
    assert len(_send(tmp_path, "pretrain")) > 1


def test_an_interruption_leaves_nothing_half_done(tmp_path: Path, fake: FakeSlurm) -> None:
    run = finish(_plan(tmp_path).steps[0])

    def interrupted(sentence: str) -> None:
        if sentence.startswith("finetune: job"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        send(_plan(tmp_path, "pretrain.optim.lr=0.5"), interrupted)
    assert [job["state"] for job in fake.jobs.values()] == ["CANCELLED"] * 2
    assert run.exists()
    assert len(_send(tmp_path, "pretrain.optim.lr=0.5")) > 3  # and the same command goes


def test_variables_of_the_session(
    tmp_path: Path, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submitting from a job: its own restarts and array index would be taken for the new one's."""
    seen = tmp_path / "seen"
    real = shutil.which("sbatch")
    (tmp_path / "bin").mkdir()
    spy = tmp_path / "bin" / "sbatch"
    spy.write_text(f'#!/bin/sh\nenv >{seen}\nexec {real} "$@"\n')
    spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{spy.parent}{os.pathsep}{os.environ['PATH']}")
    theirs = {"SLURM_RESTART_COUNT": "3", "SLURM_ARRAY_TASK_ID": "2", "RANK": "1", "PET_X": "y"}
    # A module of the centre sets options, which win over the batch script (F4 of the review).
    theirs |= {"SBATCH_PARTITION": "high", "SBATCH_TIMELIMIT": "1", "SBATCH_EXPORT": "NONE"}
    theirs |= {"MASTER_ADDR": "n1", "WORLD_SIZE": "2", "SRUN_CPUS_PER_TASK": "1"}
    ours = {"SLURM_CONF": "/etc/slurm.conf", "HF_HOME": "/x"}
    for name, value in (theirs | ours).items():
        monkeypatch.setenv(name, value)
    (told,) = [line for line in _send(tmp_path, "pretrain") if "SBATCH_PARTITION" in line]
    assert "SBATCH_TIMELIMIT" in told
    there = dict(line.partition("=")[::2] for line in seen.read_text().splitlines())
    assert not theirs.keys() & there.keys()
    assert ours.items() <= there.items()
    assert theirs.items() <= os.environ.items()  # the session keeps its own
