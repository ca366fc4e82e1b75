"""The launcher's questions to SLURM, answered by the fake one."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from lensdist.utils.errors import RunError
from slurm import scheduler
from tests.fakes.slurm import FakeSlurm

pytestmark = pytest.mark.unit

FLAGS = "#SBATCH --job-name='a b' --nodes=2 --partition=gpu"
SCRIPT = f"#!/bin/bash\n{FLAGS}\nsrun x\n#SBATCH --time=9\n"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return _use(FakeSlurm(tmp_path), monkeypatch)


def _use(fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    for key, value in fake.environment.items():
        monkeypatch.setenv(key, value)
    return fake


def _run(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, input=text, capture_output=True, text=True, check=False)


def test_states_of_the_queue_and_of_the_accounting(fake: FakeSlurm) -> None:
    waits = fake.add(reason="Priority")
    runs = fake.add(state="RUNNING", nodes="node[1-2]")
    past = fake.add(state="CANCELLED", exit_code="0:15", queued=False)
    found = scheduler.states([waits, runs, past, "7"])
    assert list(found) == [waits, runs, past]
    assert (found[waits].state, found[waits].reason) == ("PENDING", "Priority")
    assert found[runs].nodes == "node[1-2]"
    assert found[runs].reason == ""
    assert (found[past].state, found[past].exit_code) == ("CANCELLED", "0:15")
    assert [found[job].active for job in (waits, runs, past)] == [True, True, False]


def test_the_queue_is_newer_than_the_accounting(fake: FakeSlurm) -> None:
    # What real ones say for seconds after a node was lost.
    job = fake.add(reason="BeginTime", accounted={"state": "NODE_FAIL", "exit_code": "0:1"})
    found = scheduler.states([job])[job]
    assert (found.state, found.exit_code, found.active) == ("PENDING", "0:1", True)
    new = fake.add(accounted=None)
    assert scheduler.states([new])[new].state == "PENDING"


def test_what_waits_for_ever_is_told_from_what_waits(fake: FakeSlurm) -> None:
    reasons = ["Resources", "Dependency", "DependencyNeverSatisfied", "JobHeldUser"]
    reasons += ["JobHeldAdmin", "launch failed requeued held", "BadConstraints"]
    jobs = [fake.add(reason=reason) for reason in reasons]
    found = scheduler.states(jobs)
    assert [found[job].stuck for job in jobs] == [False, False] + [True] * 5


@pytest.mark.parametrize("old", [{"accounting": False}, {"accounting": False, "strict": True}])
def test_one_forgotten_job_hides_no_other(
    old: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = _use(FakeSlurm(tmp_path, **old), monkeypatch)
    first, forgotten, last = fake.add(), fake.add(queued=False), fake.add(state="RUNNING")
    found = scheduler.states([first, forgotten, last])
    assert {job: state.state for job, state in found.items()} == {first: "PENDING", last: "RUNNING"}
    assert scheduler.states([forgotten]) == {}


def test_each_task_of_an_array_has_its_state(fake: FakeSlurm) -> None:
    assert _run("sbatch", text="#!/bin/sh\n#SBATCH --array=0-3%2\n").stdout.endswith("job 101\n")
    tasks = [f"101_{i}" for i in range(4)]
    assert list(fake.jobs) == tasks
    fake.set("101_0", state="RUNNING", nodes="node1")
    scheduler.cancel(["101_2"])
    found = scheduler.states(tasks)
    states = [found[task].state for task in tasks]
    assert states == ["RUNNING", "PENDING", "CANCELLED", "PENDING"]
    rows = _run("sacct", "-n", "-P", "-o", "JobID,State", "-j", "101").stdout.splitlines()
    assert rows == ["101_[1,3]|PENDING", "101_0|RUNNING", "101_2|CANCELLED by 0"]


def test_details(fake: FakeSlurm) -> None:
    job = fake.add(state="COMPLETING", reason="TimeLimit", restarts=2)
    fake.set(job, nodes="n[1-2]", excluded="n3")
    said = scheduler.details(job)
    assert {k: said[k] for k in ("JobId", "JobState", "Reason", "Restarts")} == {
        "JobId": job,
        "JobState": "COMPLETING",
        "Reason": "TimeLimit",
        "Restarts": "2",
    }
    assert (said["NodeList"], said["ExcNodeList"]) == ("n[1-2]", "n3")
    assert scheduler.details("7") == {}


@pytest.mark.parametrize(
    ("left", "seconds"),
    [("0:07", 7), ("10:00", 600), ("1:59:50", 7190), ("2-00:00:01", 172801), ("UNLIMITED", None)],
)
def test_seconds_left(fake: FakeSlurm, left: str, seconds: float | None) -> None:
    assert scheduler.seconds_left(fake.add(state="RUNNING", left=left)) == seconds
    assert scheduler.seconds_left("7") is None


def test_requeue_elsewhere_and_later(fake: FakeSlurm) -> None:
    job = fake.add(state="RUNNING", nodes="node[1-2]", exit_code="1:0")
    scheduler.requeue(job)
    scheduler.change(job, exclude=["node1", "node7"], delay=59.6)
    now = fake.jobs[job]
    assert (now["state"], now["reason"], now["restarts"]) == ("PENDING", "BeginTime", 1)
    assert (now["nodes"], now["excluded"], now["delay"]) == ("", "node1,node7", 60)
    # Once queued again it cannot be queued again.
    with pytest.raises(RunError, match=f"Job is pending execution for job {job}"):
        scheduler.requeue(job)
    fake.set(job, state="FAILED")
    scheduler.requeue(job)
    assert (fake.jobs[job]["restarts"], fake.jobs[job]["delay"]) == (2, 0)
    assert fake.calls[-1] == ["scontrol", "requeue", job]  # nothing to change, nothing asked
    with pytest.raises(RunError, match="Invalid job id specified for job 7"):
        scheduler.requeue("7")


def test_only_what_waits_can_be_changed(fake: FakeSlurm) -> None:
    change = ("ExcNodeList=node1", "StartTime=now+5")
    runs, over = fake.add(state="RUNNING"), fake.add(state="CANCELLED")
    with pytest.raises(RunError, match="Job is no longer pending execution"):
        scheduler.tell("scontrol", "update", f"JobId={runs}", *change)
    with pytest.raises(RunError, match="Job has already finished"):
        scheduler.tell("scontrol", "update", f"JobId={over}", *change)


def test_cancel(fake: FakeSlurm) -> None:
    scheduler.cancel([])
    assert fake.calls == []
    waits, runs, over = fake.add(), fake.add(state="RUNNING"), fake.add(state="FAILED")
    scheduler.cancel([waits, runs, over, "7"])
    states = [fake.jobs[job]["state"] for job in (waits, runs, over)]
    assert states == ["CANCELLED", "CANCELLED", "FAILED"]
    with pytest.raises(RunError, match="Invalid job id x"):
        scheduler.cancel(["x"])


def test_hostnames(fake: FakeSlurm) -> None:
    names = scheduler.hostnames("gpu[07-08,11],x1,127.0.0.[9-10]")
    assert names == ["gpu07", "gpu08", "gpu11", "x1", "127.0.0.9", "127.0.0.10"]
    with pytest.raises(RunError, match="Invalid hostlist"):
        scheduler.hostnames("a[3-1]")


def test_without_slurm_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not scheduler.available()
    assert scheduler.states(["1", "2"]) == {}
    assert scheduler.details("1") == {}
    with pytest.raises(RunError, match="scontrol requeue 1"):
        scheduler.requeue("1")


def test_a_controller_that_is_away(fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_AWAY", (0,))  # minutes, else
    job = fake.add(state="RUNNING", accounted={"state": "PENDING"})
    fake.down()
    assert scheduler.available()
    with pytest.raises(RunError, match="Unable to contact slurm controller"):
        scheduler.states([job])  # not the accounting alone, which lags: it would be sent again
    with pytest.raises(RunError, match="Unable to contact slurm controller"):
        scheduler.requeue(job)
    with pytest.raises(RunError, match="Unable to contact slurm controller"):
        scheduler.cancel([job])
    fake.down(False)
    assert scheduler.states([job])[job].state == "RUNNING"


def test_a_batch_script_is_kept(fake: FakeSlurm, tmp_path: Path) -> None:
    file = tmp_path / "job.sh"
    file.write_text(SCRIPT)
    would = _run("sbatch", "--test-only", str(file))
    assert (would.returncode, would.stdout) == (0, "")
    assert "using 2 processors on nodes node[1-2] in partition gpu" in would.stderr
    assert fake.jobs == {}
    assert _run("sbatch", str(file)).stdout == "Submitted batch job 102\n"
    job = fake.jobs["102"]
    assert job["script"] == SCRIPT
    # As SLURM does, no flags after the first command.
    assert job["flags"] == {"job-name": "a b", "nodes": "2", "partition": "gpu"}
    assert (job["name"], job["partition"], job["state"]) == ("a b", "gpu", "PENDING")


def test_refusals(fake: FakeSlurm) -> None:
    fake.refuse("Invalid account", after=1)
    done = [_run("sbatch", text="#!/bin/sh\n") for _ in range(2)]
    assert [d.returncode for d in done] == [0, 1]
    assert done[1].stderr == "sbatch: error: Batch job submission failed: Invalid account\n"
    test = _run("sbatch", "--test-only", text="#!/bin/sh\n")
    assert (test.returncode, test.stderr) == (1, "allocation failure: Invalid account\n")
    fake.refuse("")
    assert _run("sbatch", text="#!/bin/sh\n").returncode == 0


def test_what_the_fake_does_not_know_fails_the_test(fake: FakeSlurm) -> None:
    assert _run("scontrol", "hold", "101").returncode == 99
    with pytest.raises(AssertionError, match="scontrol hold 101"):
        _ = fake.jobs
    with pytest.raises(KeyError, match="a job has no stat"):
        FakeSlurm.set(fake, fake.add(), stat="RUNNING")


def test_submitit_is_answered(fake: FakeSlurm, tmp_path: Path) -> None:
    from submitit.core.utils import FailedJobError
    from submitit.slurm.slurm import SlurmExecutor, SlurmJob

    executor = SlurmExecutor(tmp_path / "submission")
    flags = {"dependency": "afterok:7", "kill-on-invalid-dep": "yes", "requeue": True}
    executor.update_parameters(job_name="tiny", nodes=2, time=30, additional_parameters=flags)
    try:
        job = executor.submit(str, 1)
        assert fake.jobs[job.job_id]["dependency"] == "afterok:7"
        assert fake.jobs[job.job_id]["reason"] == "Dependency"
        assert fake.jobs[job.job_id]["flags"]["requeue"] == ""
        assert SlurmJob.watcher.get_state(job.job_id, mode="force") == "PENDING"
        tasks = executor.map_array(str, [1, 2, 3])
        fake.set(tasks[1].job_id, state="COMPLETED")
        states = [SlurmJob.watcher.get_state(t.job_id, mode="force") for t in tasks]
        assert states == ["PENDING", "COMPLETED", "PENDING"]
        job.cancel()
        assert fake.jobs[job.job_id]["state"] == "CANCELLED"
        fake.refuse("Invalid qos specification")
        with pytest.raises(FailedJobError, match="Invalid qos specification"):
            executor.submit(str, 1)
    finally:
        SlurmJob.watcher.clear()
