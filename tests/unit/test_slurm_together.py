"""Phases that share one job of a fake SLURM."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from lensdist.utils.errors import UserError
from slurm.attempts import AttemptLog
from slurm.job import Job, load_job
from slurm.job_side import shell
from slurm.monitor.status import query
from slurm.plan.builder import make_plan
from slurm.plan.plan import Plan
from slurm.plan.render import render_plan
from slurm.submission.resume import cancel, resume
from slurm.submission.send import send
from slurm.submission.takeover import take_over
from tests.chains import write_chain, write_cluster
from tests.fakes.slurm import FakeSlurm
from tests.unit.queued import fake, sendings, waits

pytestmark = pytest.mark.unit
__all__ = ["fake"]


def _plan(tmp_path: Path, *words: str) -> Plan:
    """pretrain and finetune in one job, evaluate in another."""
    chain = write_chain(tmp_path, tmp_path / "packed")
    text = json.loads(chain.read_text())
    for name in ("pretrain", "finetune"):
        text["phases"][name]["together"] = True
    chain.write_text(json.dumps(text))
    return make_plan(chain, write_cluster(tmp_path, executor="slurm", cpus_per_task=2), words)


def _sent(tmp_path: Path) -> tuple[Plan, dict[str, Job]]:
    plan = _plan(tmp_path, "finetune.cluster.cpus_per_task=4")
    send(plan, lambda sentence: None)
    (folder,) = sendings(plan.state)
    return plan, {s.name: load_job(folder / f"{s.name}.json") for s in plan.steps}


def _states(plan: Plan) -> list[tuple[str, str]]:
    return [one.state for one in query([step.target for step in plan.steps], plan.state)]


def test_neighbours_share_a_job_that_suffices_for_each(tmp_path: Path, fake: FakeSlurm) -> None:
    plan, jobs = _sent(tmp_path)
    assert waits(fake) == {"101": "", "102": "afterok:101"}
    flags = fake.jobs["101"]["flags"]
    assert (flags["time"], flags["cpus-per-task"]) == ("40", "4")
    assert "together in one job with pretrain" in render_plan(plan)
    logs = [AttemptLog.of(plan.state, name).events()[-1] for name in jobs]
    assert [(e.job, e.log) for e in logs] == [
        ("101", "pretrain.101"),
        ("101", "finetune.101"),
        ("102", ""),
    ]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [("partition=gpu", "they differ in partition"), ("nodes=1-2", "give one number")],
)
def test_what_one_job_cannot_have_is_refused(tmp_path: Path, setting: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        _plan(tmp_path, f"finetune.cluster.{setting}")


def test_each_phase_has_a_state_of_its_own(tmp_path: Path, fake: FakeSlurm) -> None:
    plan, jobs = _sent(tmp_path)
    fake.set("101", state="RUNNING")
    jobs["pretrain"].log("started", "101", attempt=1)
    waiting = ("PENDING", "another phase runs in its job")
    assert _states(plan)[:2] == [("RUNNING", ""), waiting]
    jobs["pretrain"].log("ended", "101", attempt=1, verdict="stop", reason="it fell")
    assert _states(plan)[:2] == [("stopped", "it fell"), waiting]
    assert [one.live for one in query([s.target for s in plan.steps[:2]], plan.state)] == [0, 1]
    # What has ended does not begin again when the job is requeued for another phase.
    assert jobs["pretrain"].settled() == "stop"
    jobs["pretrain"].log("ended", "101", attempt=1, verdict="done")
    assert jobs["pretrain"].settled() == "done"
    assert jobs["finetune"].settled() is None


def test_a_new_job_takes_all_of_them_over(tmp_path: Path, fake: FakeSlurm) -> None:
    plan, jobs = _sent(tmp_path)
    fake.set("101", state="RUNNING")
    jobs["pretrain"].log("ended", "101", attempt=1, verdict="done")
    assert take_over(jobs["finetune"], [], 0, lambda sentence: None) == "103"
    assert waits(fake) == {"103": "", "102": "afterok:103"}
    # What is complete keeps its log, of the old job.
    assert [AttemptLog.of(plan.state, n).events()[-1].job for n in jobs] == ["101", "103", "102"]
    assert _states(plan)[0] == ("done", "")
    assert "/pretrain.json" in fake.jobs["103"]["script"]


def test_cancelling_one_cancels_the_job_and_resuming_shares_again(
    tmp_path: Path, fake: FakeSlurm
) -> None:
    plan, _ = _sent(tmp_path)
    said: list[str] = []
    targets = [step.target for step in plan.steps]
    cancel(targets[1:2], plan.state, said.append)
    assert said == [f"{name}: job 101 cancelled" for name in ("finetune", "pretrain")]
    assert fake.jobs["101"]["state"] == "CANCELLED"
    fake.set("102", state="CANCELLED")
    resume(targets, plan.state, (), None, said.append)
    assert waits(fake) == {"103": "", "104": "afterok:103"}


@pytest.mark.parametrize(
    ("ends", "begun", "code"),
    [("0 0 0", "abc", 0), ("0 1 0", "abc", 1), ("0 75 0", "ab", 75), ("0 s 0", "ac", 1)],
)
def test_the_script_goes_on_unless_the_job_is_over(
    tmp_path: Path, ends: str, begun: str, code: int
) -> None:
    """Each phase ends with a code; `s`: it was stopped before the job was requeued."""
    for name, end in zip("abc", ends.split(), strict=True):
        (tmp_path / name).write_text(end)
    python, srun = tmp_path / "python", tmp_path / "srun"
    python.write_text(
        '#!/bin/sh\ncase $2 in *prologue) echo :; grep -q s "$3" && echo settled=1; exit 0;; '
        '*) exit "$(cat "$3")";; esac\n'
    )
    srun.write_text('#!/bin/sh\nprintf "$1"\n')
    for tool in (python, srun):
        tool.chmod(0o755)
    lines = [*shell.phases(str(python)), *(f"run_phase {one} {one}" for one in "abc")]
    done = subprocess.run(
        ["bash", "-c", "\n".join([*lines, "exit $failed"])],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == (begun, code), done.stderr
