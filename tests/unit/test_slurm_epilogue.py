"""What a batch script does before its steps and after them, with a fake SLURM."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lensdist.utils.files import write_atomic
from lensdist.utils.launched import DEADLINE
from lensdist.utils.outcome import leave_for
from slurm import scheduler
from slurm.job_side import epilogue, prologue
from slurm.job_side.command import ATTEMPT
from slurm.plan.sbatch import array_file, batch_script
from slurm.submission.snapshot import copy_code
from tests.chains import ODD
from tests.fakes.slurm import FakeSlurm
from tests.unit.queued import fake, mark_complete
from tests.unit.scripts import Script, script

pytestmark = pytest.mark.unit
__all__ = ["fake", "script"]

Said = Callable[[], str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """What was said on stderr since last asked."""
    return lambda: capsys.readouterr().err


def test_an_attempt_knows_its_number_and_its_end(script: Script) -> None:
    now = time.time()
    found = script.begin()
    assert {*found} == {ATTEMPT, DEADLINE}
    assert found[ATTEMPT] == "1"
    assert now - 1 <= float(found[DEADLINE]) - 3600 <= time.time() + 1
    assert script.outcomes.is_dir()
    started = script.last
    assert (started.what, started.job, started.nodes) == ("started", script.id, ("gpu7", "gpu8"))
    script.fake.set(script.id, left="UNLIMITED")
    script.write("later")  # attempts are the phase's, whatever it was sent with
    assert script.begin() == {ATTEMPT: "2"}


@pytest.mark.parametrize(
    ("given", "used"),
    [("gpu[1-4]", "gpu1 gpu2 gpu3 gpu4"), ("gpu[1,3],x", "gpu1 gpu3"), ("x", "x")],
)
def test_nodes_that_share_the_step_evenly(script: Script, given: str, used: str) -> None:
    script.write(counts=(1, 2, 4), cluster={"nodes": "1-4"})
    script.allot(given)
    found = script.begin()
    # What srun takes its numbers of nodes and tasks from.
    names = ("SLURM_JOB_NUM_NODES", "SLURM_NNODES", "SLURM_NTASKS")
    fewer = "2" if given == "gpu[1,3],x" else None
    assert [found.get(name) for name in names] == [fewer] * 3
    assert script.last.nodes == tuple(used.split())


def test_what_needs_an_incomplete_phase_does_not_begin(script: Script, said: Said) -> None:
    job = script.write(needs=(script.need,))
    assert prologue.main(str(script.file)) == 1
    event = script.last
    assert (event.what, event.verdict, event.kind) == ("ended", "stop", "input")
    assert event.reason.startswith("finetune not started: pretrain is not complete")
    assert f"error: {event.reason}\n" == said()
    mark_complete(job.needs[0].run)
    assert script.begin()[ATTEMPT] == "2"


def test_unknown_nodes_or_an_open_folder(script: Script, said: Said) -> None:
    script.allot("gpu[8-7]")
    assert prologue.main(str(script.file)) == 1
    assert "Invalid hostlist" in said()
    script.file.parent.chmod(0o777)
    assert prologue.main(str(script.file)) == epilogue.main(str(script.file), 0) == 1
    assert "chmod 700" in said()
    assert not script.job.attempt_log.path.exists()


def test_what_is_complete_is_done_whatever_the_exit_code(script: Script, said: Said) -> None:
    script.begin()
    mark_complete(script.run)
    script.fake.set(script.id, state="COMPLETING", reason="TimeLimit")
    assert script.settle(1) == 0
    assert (script.last.verdict, script.last.job) == ("done", script.id)
    assert said() == "finetune: complete\n"
    assert script.told == []


def test_a_run_that_saved_is_queued_again_once(script: Script, said: Said) -> None:
    script.begin()
    script.step(40)
    for rank in (0, 1):
        leave_for(script.outcomes, rank, "saved", "")
    assert script.settle() == 75
    assert script.told == [["scontrol", "requeue", script.id]]
    assert (script.last.verdict, script.last.step, script.last.kind) == ("requeue", 40, "saved")
    assert said() == "finetune: asked to stop, and saved at step 40; requeued\n"


@pytest.mark.parametrize(
    ("job", "verdict", "reason"),
    [
        ({"state": "RUNNING"}, "requeue", "ended with code 9"),
        ({"state": "COMPLETING", "reason": "TimeLimit"}, "requeue", "ended with code 9"),
        ({"state": "COMPLETING", "reason": "None"}, "leave", "cancelled"),
        ({"state": "CANCELLED"}, "leave", "cancelled"),
        ({"state": "PREEMPTED"}, "leave", "ended by SLURM (PREEMPTED)"),
        ({"state": "PENDING", "restarts": 2}, "leave", "SLURM has requeued it itself"),
    ],
)
def test_states_of_slurm(script: Script, job: dict[str, Any], verdict: str, reason: str) -> None:
    script.allot("gpu[7-8]", RESTART_COUNT="1")
    script.begin()
    script.fake.set(script.id, **{"restarts": 1, **job})
    assert script.settle(9) == 75
    assert script.last.verdict == verdict
    assert reason in script.last.reason
    assert [call[1] for call in script.told] == ["requeue", "update"] * (verdict == "requeue")


def test_nodes_that_are_not_fit_are_left_out_and_a_crash_waits(script: Script, said: Said) -> None:
    # What an earlier submission left out may have been mended since.
    old = {"attempt": 1, "verdict": "stop", "excluded": ("gpu1",)}
    script.job.attempt_log.append("ended", "99", "older", **old)
    script.write(cluster={"exclude": ("gpu5",), "requeue": {"backoff": 30}})
    script.begin()
    script.step(8)
    script.report("gpu8", "gpu8 is hot")
    assert script.settle() == 75
    assert script.last.excluded == ("gpu8",)
    script.fake.set(script.id, state="RUNNING", nodes="gpu[7,9]")
    script.allot("gpu[7,9]", RESTART_COUNT="1")
    script.begin()
    leave_for(script.outcomes, 0, "crashed", "RuntimeError: it fell")
    assert script.settle() == 75
    job, update = script.id, ["scontrol", "update", f"JobId={script.id}"]
    assert script.told == [
        ["scontrol", "requeue", job],
        [*update, "ExcNodeList=gpu5,gpu8"],
        ["scontrol", "requeue", job],
        [*update, "ExcNodeList=gpu5,gpu8", "StartTime=now+30"],
    ]
    assert said().endswith("; requeued in 30 s\n")
    assert script.fake.jobs[job]["restarts"] == 2


@pytest.mark.parametrize(
    ("nodes", "unfit", "excluded", "delayed"),
    [
        ("gpu[7-8]", ("gpu7", "gpu8"), (), True),
        ("gpu[7-8]", ("gpu8",), ("gpu8",), False),  # gpu7 has no such problem
        ("gpu8", ("gpu8",), (), True),
    ],
)
def test_a_full_disk(
    script: Script, nodes: str, unfit: tuple[str, ...], excluded: tuple[str, ...], delayed: bool
) -> None:
    script.write(cluster={"requeue": {"backoff": 30}})
    script.allot(nodes)
    script.begin()
    for node in unfit:
        script.report(node, f"{node} finds the disk full", shared=True)
    assert script.settle() == 75
    assert (script.last.excluded, script.last.kind) == (excluded, "device")
    change = "StartTime=now+30" if delayed else "ExcNodeList=gpu8"
    update = ["scontrol", "update", f"JobId={script.id}", change]
    assert script.told == [["scontrol", "requeue", script.id], update]


def test_only_attempts_since_the_phase_was_sent_count(script: Script) -> None:
    for submission in ("now", "again"):
        job = script.write(submission, cluster={"requeue": {"limit": 1}})
        for verdict in ("requeue", "stop"):
            script.begin()
            number = script.last.attempt
            found = epilogue.end_attempt(job, script.id, number, 9, "RUNNING", requeued=False)
            assert found.verdict == verdict
        assert found.reason.startswith("attempt 2 since it was sent, the last allowed")
    assert number == 4


def test_a_refused_requeue(script: Script, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_AWAY", (0,))  # minutes, else
    script.begin()
    script.fake.down()
    assert script.settle(9) == 1
    assert script.last.verdict == "stop"
    assert "ended with code 9" in script.last.reason
    assert "SLURM did not requeue it: scontrol requeue" in script.last.reason
    assert "error: scontrol requeue" in said()


def test_what_was_cancelled_is_not_queued_again(script: Script) -> None:
    script.begin()
    script.step(8)
    script.job.attempt_log.append("cancelled", script.id, "now")
    leave_for(script.outcomes, 0, "saved", "")
    assert script.settle() == 75
    assert (script.last.verdict, script.last.reason) == ("leave", "cancelled; saved at step 8")
    assert script.told == []


def _srun(folder: Path, patch: pytest.MonkeyPatch, body: str) -> None:
    """Put an srun on PATH."""
    tool = write_atomic(folder / "bin" / "srun", f"#!/bin/sh\n{body}\n")
    tool.chmod(0o755)
    patch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")


def _bash(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-s"], input=text, capture_output=True, text=True, check=False)


def test_the_script_of_an_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeSlurm
) -> None:
    folder = tmp_path / ODD / "INDEX"
    folder.mkdir(parents=True)
    script = Script(folder, monkeypatch, fake)
    job = script.write(counts=(1, 2))
    task = array_file(job.folder, "finetune", 3)
    task.parent.mkdir(mode=0o700)
    task.symlink_to("../finetune.json")
    script.allot("gpu[7-8]", ARRAY_JOB_ID="90", ARRAY_TASK_ID="3")
    _srun(tmp_path, monkeypatch, "exit 3")
    done = _bash(batch_script(job, [], array="finetune"))
    assert "finetune: ended with code 3" in done.stderr
    assert [e.job for e in script.job.attempt_log.events()] == ["90_3"] * 2
    assert script.told[0] == ["scontrol", "requeue", script.id]  # SLURM's number, not the name


def test_changed_code_is_not_run(script: Script, tmp_path: Path, said: Said) -> None:
    job = script.job.model_copy(update={"code": copy_code(tmp_path / "clone", script.job.state)})
    write_atomic(script.file, job.model_dump_json())
    script.begin()
    (job.code / "lensdist" / "a.py").write_text("A = 2\n")
    assert script.settle(1) == 1
    assert script.last.verdict == "stop"
    assert "was changed after it was made" in script.last.reason
    assert not [call for call in script.told if call[1] == "requeue"]
    assert prologue.main(str(script.file)) == 1
    assert "was changed after it was made" in said()
    assert script.last.verdict == "stop"


def test_the_batch_script(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script.write(counts=(1,), cluster={"requeue": {"backoff": 0}})
    seen = '"$SLURM_NNODES $LENSDIST_ATTEMPT $PYTHONSAFEPATH"'
    # SLURM tells the script, too, when it ends a job: it must live to settle.
    _srun(tmp_path, monkeypatch, f"kill -TERM $PPID\necho {seen}\nexit 3")
    text = batch_script(script.job, [])
    done = _bash(text)
    assert done.stdout == "1 1 1\n"
    assert done.returncode == 75
    assert "1 of 2 nodes share the step evenly" in done.stderr
    assert "finetune: ended with code 3, without an exit report; requeued" in done.stderr
    assert script.told == [["scontrol", "requeue", script.id]]
    # What could not begin does not run, and is not settled twice.
    script.write(needs=(script.need,))
    script.fake.set(script.id, state="RUNNING")
    done = _bash(text)
    assert (done.returncode, done.stdout) == (1, "")
    assert "pretrain is not complete" in done.stderr
    assert [e.what for e in script.job.attempt_log.events()] == ["started", "ended"] * 2
