"""The launcher's questions to SLURM, answered by the fake one, or by a script."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lensdist.utils.errors import RunError
from slurm import scheduler
from tests.fakes.slurm import FakeSlurm

pytestmark = pytest.mark.unit


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
def test_a_forgotten_job(
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
    tried = [call for call in fake.calls if call[:2] == ["scontrol", "requeue"]]
    assert len(tried) == 2  # once more after the pause
    fake.down(False)
    assert scheduler.states([job])[job].state == "RUNNING"


def test_what_the_fake_does_not_know_fails_the_test(fake: FakeSlurm) -> None:
    assert _run("scontrol", "hold", "101").returncode == 99
    with pytest.raises(AssertionError, match="scontrol hold 101"):
        _ = fake.jobs
    with pytest.raises(KeyError, match="a job has no stat"):
        FakeSlurm.set(fake, fake.add(), stat="RUNNING")


SCRIPT = """#!/bin/bash

# Parameters
#SBATCH --dependency=afterok:JOB_OF_pretrain
#SBATCH --job-name=tiny-finetune
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --nodes=2

srun x --dependency
"""


def _sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """One that keeps what it was given, and answers."""
    fake = tmp_path / "sbatch"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/words\ncat > {tmp_path}/script\n{body}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_when_a_job_could_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "Job 24 to start at 2026-11-24T12:00:00 using 4 processors on nodes gpu[1-2]"
    _sbatch(tmp_path, monkeypatch, f"echo 'sbatch: {answer} in partition main' >&2")
    alone = SCRIPT.replace("--dependency=afterok:JOB_OF_pretrain", "--time=20").replace(
        "#SBATCH --kill-on-invalid-dep=yes\n", ""
    )
    said = "at 2026-11-24 12:00:00 on 4 cores of gpu[1-2], partition main"
    waits = f"{said}, not counting the phases it waits for"
    assert scheduler.expected_start(alone) == said
    assert (tmp_path / "script").read_text() == alone
    assert scheduler.expected_start(SCRIPT) == waits
    given = (tmp_path / "script").read_text()
    assert "JOB_OF" not in given
    assert "invalid-dep" not in given
    assert "#SBATCH --nodes=2\n\nsrun x --dependency\n" in given  # the commands stay as they are
    assert set((tmp_path / "words").read_text().split("\n")) == {"--test-only", ""}


def test_preempted_jobs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "Job 9 to start at 2026-11-24T12:00:00 using 1 processors on nodes node1"
    _sbatch(tmp_path, monkeypatch, f"echo 'sbatch: {answer}\nsbatch:   Preempts: 7,8' >&2")
    said = "at 2026-11-24 12:00:00 on 1 core of node1, in place of job 7,8"  # without a partition
    assert scheduler.expected_start("#!/bin/sh\n") == said


def test_a_refusal_is_in_slurm_s_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _sbatch(tmp_path, monkeypatch, "exit 1")
    assert scheduler.expected_start(SCRIPT) == "refused: exit code 1"
    _sbatch(tmp_path, monkeypatch, "printf 'sbatch: error: no partition\nwrong name' >&2; exit 1")
    assert scheduler.expected_start(SCRIPT) == "refused: no partition; wrong name"


def test_a_controller_that_is_down_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = "Batch job submission failed: Unable to contact slurm controller (connect failure)"
    _sbatch(tmp_path, monkeypatch, f"echo 'sbatch: error: {away}' >&2; exit 1")
    with pytest.raises(RunError, match="SLURM does not answer; try again later"):
        scheduler.expected_start(SCRIPT)


def test_resources_that_no_node_has_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sbatch(tmp_path, monkeypatch, "echo 'Requested node configuration is not available'; exit 1")
    script = "#!/bin/sh\n#SBATCH --gpus-per-node=9\n#SBATCH --mem=8GB\n#SBATCH --nodes=2\n"
    said = scheduler.expected_start(script)
    assert said.endswith("; asked for: gpus-per-node=9, mem=8GB, nodes=2")
