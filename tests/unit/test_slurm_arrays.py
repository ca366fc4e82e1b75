"""Sweeps on a fake SLURM: arrays, and what their tasks wait for."""

from __future__ import annotations

from pathlib import Path

import pytest

from lensdist.utils.errors import RunError
from slurm.attempts import AttemptLog
from slurm.job import load_job
from slurm.plan.builder import make_plan
from slurm.plan.plan import Plan
from slurm.plan.render import batch_scripts
from slurm.plan.sbatch import array_file
from slurm.submission.resume import resume
from slurm.submission.send import send
from tests.chains import write_chain, write_cluster
from tests.fakes.slurm import FakeSlurm
from tests.unit.queued import fake, finish, sendings, waits

pytestmark = pytest.mark.unit
__all__ = ["fake"]

THREE = "optim.lr=1e-3,2e-3,3e-3"


def _plan(tmp_path: Path, *words: str, sweep: str) -> Plan:
    chain = write_chain(tmp_path, tmp_path / "packed")
    return make_plan(chain, write_cluster(tmp_path, executor="slurm"), words, [sweep])


def _send(tmp_path: Path, *words: str, sweep: str) -> list[str]:
    """What is said."""
    said: list[str] = []
    send(_plan(tmp_path, *words, sweep=sweep), said.append)
    return said


def test_a_sweep_is_an_array_for_each_phase_and_a_table(tmp_path: Path, fake: FakeSlurm) -> None:
    said = _send(tmp_path, sweep="finetune.seed=1,2,3")
    conditions = {"102": "afterok:101", "103": "aftercorr:102"}
    tasks = {f"{array}_{i}": what for array, what in conditions.items() for i in range(3)}
    assert waits(fake) == {"101": "", **tasks, "104": "afterany:102,afterany:103"}
    assert fake.jobs["102_0"]["flags"]["array"] == "0-2%3"
    assert "evaluate@finetune.seed=2: job 103_1, after 102_1" in said
    # The script knows its task's number only.
    state = tmp_path / "runs" / ".submit"
    (folder,) = sendings(state)
    job = load_job(array_file(folder, "finetune", 1))
    assert job.target.phase == "finetune@finetune.seed=2"
    script = fake.jobs["102_0"]["script"]
    assert f'{folder}/finetune.array/"$SLURM_ARRAY_TASK_ID".json' in script
    attempt_log = AttemptLog(state / "ledger" / "finetune@finetune.seed=2.jsonl")
    assert [event.job for event in attempt_log.events()] == ["102_1"]


def test_points_that_wait_differently_are_single_jobs(tmp_path: Path, fake: FakeSlurm) -> None:
    words = ("pretrain", "finetune")
    finish(_plan(tmp_path, sweep=THREE).steps[0])
    _send(tmp_path, *words, sweep=THREE)
    assert waits(fake) == {
        "101_0": "",
        "101_1": "",
        "102": "",
        "103": "afterok:101_0",
        "104": "afterok:101_1",
        "105": "afterany:101,afterany:102,afterany:103,afterany:104",
    }


def test_points_wait_for_tasks_of_other_numbers(tmp_path: Path, fake: FakeSlurm) -> None:
    _send(tmp_path, "pretrain", sweep=THREE)
    first = _plan(tmp_path, sweep=THREE)
    for step in (first.steps[0], first.steps[3]):
        finish(step)
    fake.set("101_0", state="COMPLETED")
    _send(tmp_path, "finetune", sweep=THREE)
    # aftercorr would let the first wait for what it needs nothing of, and start too early.
    assert {job: waits(fake)[job] for job in ("103", "104")} == {
        "103": "afterok:101_1",
        "104": "afterok:101_2",
    }


def test_what_follows_points_that_were_sent_one_by_one(tmp_path: Path, fake: FakeSlurm) -> None:
    finish(_plan(tmp_path, sweep=THREE).steps[0])
    _send(tmp_path, sweep=THREE)
    found = waits(fake)
    assert [found[job] for job in ("105", "106", "107")] == [
        f"afterok:{n}" for n in (102, 103, 104)
    ]
    assert found["108"] == ",".join(f"afterany:{n}" for n in range(101, 108))


def test_a_refusal_cancels_arrays_too(tmp_path: Path, fake: FakeSlurm) -> None:
    fake.refuse("Invalid account", after=2)
    with pytest.raises(RunError, match="evaluate was refused"):
        _send(tmp_path, sweep="finetune.seed=1,2")
    assert waits(fake) == {}
    assert {job["state"] for job in fake.jobs.values()} == {"CANCELLED"}


def test_the_table_waits_for_resumed_points(tmp_path: Path, fake: FakeSlurm) -> None:
    plan = _plan(tmp_path, "pretrain", sweep="pretrain.seed=1,2")
    send(plan, lambda sentence: None)
    for job in fake.jobs:
        fake.set(job, state="CANCELLED")
    resume([step.target for step in plan.steps], plan.state, (), None, lambda sentence: None)
    assert waits(fake) == {"103_0": "", "103_1": "", "104": "afterany:103"}


SEVEN = "finetune.seed=" + ",".join(map(str, range(7)))


def test_a_sweep_larger_than_an_array_may_be_is_several(tmp_path: Path, fake: FakeSlurm) -> None:
    fake.limit_arrays(3)
    plan = _plan(tmp_path, sweep=SEVEN)
    scripts = batch_scripts(plan)
    assert [*scripts] == [
        "pretrain",
        *("finetune", "finetune.2", "finetune@finetune.seed=6"),
        *("evaluate", "evaluate.2", "evaluate@finetune.seed=6"),
        next(name for name in scripts if name.startswith("sweep-")),
    ]
    send(plan, lambda sentence: None)
    arrays = {"102": 3, "103": 3, "104": 0, "105": 3, "106": 3, "107": 0}
    before = {"102": "afterok:101", "103": "afterok:101", "104": "afterok:101"}
    before |= {"105": "aftercorr:102", "106": "aftercorr:103", "107": "afterok:104"}
    expected = {
        f"{job}_{task}" if size else job: before[job]
        for job, size in arrays.items()
        for task in range(size or 1)
    }
    table = ",".join(f"afterany:{job}" for job in arrays)
    assert waits(fake) == {"101": "", **expected, "108": table}
    jobs = fake.jobs
    assert jobs["103_0"]["flags"]["array"] == "0-2%3"
    # Each task finds its own job.
    (folder,) = sendings(tmp_path / "runs" / ".submit")
    file = f"{folder}/finetune.2.array/"
    assert f'{file}"$SLURM_ARRAY_TASK_ID".json' in jobs["103_1"]["script"]
    seeds = [load_job(array_file(folder, "finetune.2", i)).target.phase[-1] for i in range(3)]
    assert seeds == ["3", "4", "5"]
    assert jobs["103_1"]["script"] == scripts["finetune.2"].replace("NEW", folder.name).replace(
        "CODE", load_job(folder / "pretrain.json").code.name
    ).replace("JOB_OF_pretrain", "101")


def test_so_many_points_run_at_once(tmp_path: Path, fake: FakeSlurm) -> None:
    fake.limit_arrays(3)
    send(_plan(tmp_path, "cluster.at_once=2", sweep=SEVEN), lambda sentence: None)
    assert fake.jobs["102_0"]["flags"]["array"] == "0-2%2"
    found = waits(fake)
    # One array after the other, so that two run in all.
    assert found["103_0"] == "afterok:101,afterany:102"
    assert found["106_0"] == "aftercorr:103,afterany:105"


def test_so_many_resumed_points_run_at_once(tmp_path: Path, fake: FakeSlurm) -> None:
    plan = _plan(tmp_path, "pretrain", "finetune", "cluster.at_once=2", sweep=THREE)
    send(plan, lambda sentence: None)
    for job in [*fake.jobs]:
        fake.set(job, state="CANCELLED")
    targets = [step.target for step in plan.steps]
    resume(targets, plan.state, ("pretrain",), None, lambda sentence: None)
    assert {fake.jobs[f"{array}_0"]["flags"]["array"] for array in (104, 105)} == {"0-2%2"}
    for job in [*fake.jobs]:
        fake.set(job, state="CANCELLED")
    finish(plan.steps[0])
    resume(targets, plan.state, (), None, lambda sentence: None)
    # The first point of finetune waits for nothing, so they are single jobs: two at once of them.
    assert waits(fake) == {
        "107_0": "",
        "107_1": "",
        "108": "",
        "109": "afterok:107_0",
        "110": "afterok:107_1,afterany:108",
        "111": "afterany:107,afterany:108,afterany:109,afterany:110",
    }


def test_options_are_dropped_from_arrays_too(tmp_path: Path, fake: FakeSlurm) -> None:
    words = ("cluster.sbatch={mem: null, open-mode: null, wckey: mine}", "cluster.mem_gb=4")
    send(_plan(tmp_path, *words, sweep="finetune.seed=1,2"), lambda sentence: None)
    for job in fake.jobs.values():
        assert not {"mem", "open-mode"} & job["flags"].keys()
        assert job["flags"]["wckey"] == "mine"
