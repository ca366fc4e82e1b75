"""What a batch script does before its steps and after them, with a fake SLURM."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lensdist.utils.files import write_atomic
from lensdist.utils.launched import DEADLINE
from lensdist.utils.outcome import leave_for
from slurm import scheduler
from slurm.attempts import AttemptLog
from slurm.job import Target
from slurm.job_side import epilogue, prologue
from slurm.job_side.command import ATTEMPT
from slurm.plan.sbatch import array_file, batch_script
from slurm.submission.snapshot import copy_code
from tests.chains import ODD
from tests.fakes.slurm import FakeSlurm
from tests.unit.jobs import make_job
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
        leave_for(script.outcomes, rank, "saved", "", rank)
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
        ({"state": "PREEMPTED"}, "requeue", "preempted"),
        ({"state": "COMPLETING", "preempt_time": "2026-01-01T00:00:00"}, "requeue", "preempted"),
        ({"state": "RUNNING", "preempt_time": "2026-01-01T00:00:00"}, "requeue", "preempted"),
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
    update = ["update"] * (reason != "preempted")  # which waits for nothing
    assert [call[1] for call in script.told] == ["requeue", *update] * (verdict == "requeue")


def test_a_user_who_cancels_in_the_grace_of_a_preemption_is_obeyed(script: Script) -> None:
    script.begin()
    said = f"slurmstepd-gpu7: error: *** JOB {script.id} ON gpu7 CANCELLED AT 2026-01-01T00:00:00"
    log = script.job.folder / f"{script.id}_0_log.out"
    log.write_text(f"{said} DUE TO PREEMPTION ***\nlater\n{said} ***\n")
    script.fake.set(script.id, state="COMPLETING", preempt_time="2026-01-01T00:00:00")
    assert script.settle(9) == 75
    assert (script.last.verdict, script.last.reason) == ("leave", "cancelled")
    assert script.told == []


def _waiting(script: Script, phase: str, after: str, **job: Any) -> str:
    """Queue a phase after one of the script's jobs; its id."""
    target = Target(phase=phase, run=script.run.with_name(phase))
    needs = job.pop("needs", (script.job.target,))
    made = make_job(target, script.job.state, needs=needs, cluster={"executor": "slurm"}, **job)
    number = script.fake.add(dependency=after, reason="Dependency")
    made.log("sent", number)
    return number


def test_where_nothing_is_requeued_a_new_job_takes_over(script: Script, said: Said) -> None:
    script.write(cluster={"exclude": ("gpu5",)})
    script.job.log("sent", script.id)
    other = script.fake.add(state="RUNNING")
    follows = _waiting(script, "evaluate", f"afterok:{script.id}")
    table = _waiting(
        script, "table", f"afterok:{follows},afterany:{script.id}", needs=(), follows=("finetune",)
    )
    script.begin()
    script.step(40)
    leave_for(script.outcomes, 0, "saved", "")
    script.fake.set(script.id, requeue=0)
    assert script.settle() == 75
    new = script.last.job
    assert (script.last.what, script.last.submission) == ("sent", script.job.folder.name)
    jobs = script.fake.jobs
    assert new not in (script.id, other, follows, table)
    assert jobs[new]["excluded"] == "gpu5"
    assert jobs[new]["dependency"] == ""
    assert jobs[follows]["dependency"] == f"afterok:{new}"
    assert jobs[table]["dependency"] == f"afterany:{new}"
    assert f"finetune: sent again as job {new}" in said()
    # The new job counts its attempts on, and has what submitit's task reads.
    script.allot("gpu[7-8]", JOB_ID=new)
    assert script.begin()[ATTEMPT] == "2"
    assert (script.job.folder / f"{new}_submitted.pkl").exists()


def test_a_crash_waits_where_nothing_is_requeued_too(script: Script) -> None:
    script.write(cluster={"requeue": {"backoff": 30}})
    script.fake.set(script.id, requeue=0)
    script.begin()
    assert script.settle(9) == 75
    assert script.fake.jobs[script.last.job]["flags"]["begin"] == "now+30"


def test_what_was_cancelled_meanwhile_does_not_come_back(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.fake.set(script.id, requeue=0)
    script.begin()
    script.step(8)
    leave_for(script.outcomes, 0, "saved", "")
    refused = scheduler.requeue

    def requeue(job: str) -> None:  # the user's `cancel` comes now
        script.job.log("cancelled", job)
        refused(job)

    monkeypatch.setattr(scheduler, "requeue", requeue)
    script.settle()
    assert script.fake.jobs[script.last.job]["state"] == "CANCELLED"


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
    ("heard", "excluded"),
    [
        (("gpu7",), ("gpu8",)),
        (("gpu7", "gpu8"), ()),
        ((), ()),
    ],
)
def test_a_node_without_a_word_is_left_out_if_others_gave_theirs(
    script: Script, heard: tuple[str, ...], excluded: tuple[str, ...]
) -> None:
    """F2: it lacks the interpreter, so it can say nothing."""
    script.begin()
    for node in heard:
        script.report(node, "")
    assert script.settle(137) == 75
    assert script.last.excluded == excluded
    assert ("gpu8 left no report" in script.last.reason) == bool(excluded)


def test_a_short_attempt_blames_no_silent_node(script: Script) -> None:
    script.begin()
    script.report("gpu7", "")
    script.fake.set(script.id, state="COMPLETING", reason="TimeLimit")
    script.settle(137)
    assert script.last.excluded == ()


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


@pytest.mark.parametrize(
    ("lost", "requeue"), [("interpreter", 1), ("code", 0), ("file", 1), ("package", 0)]
)
def test_a_node_on_which_nothing_can_run_is_left_out(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str, requeue: int
) -> None:
    """F2: before any Python, so by the shell alone; the next node's prologue logs it."""
    job = script.write(counts=(1, 2), cluster={"exclude": ("gpu5",)})
    _srun(tmp_path, monkeypatch, "echo ran")
    job.log("sent", script.id)
    waits = script.fake.add(dependency=f"afterok:{script.id}", reason="Dependency")
    script.fake.set(script.id, requeue=requeue, excluded="gpu5")
    monkeypatch.setenv("SLURMD_NODENAME", "gpu7")
    there, gone = {
        "interpreter": (sys.executable, "/nowhere/python"),
        "code": (str(job.code / "slurm"), "/nowhere/slurm"),
        "file": (str(job.file), "/nowhere/file.json"),
        "package": (f"{sys.executable} -m", "/bin/false"),
    }[lost]
    file = tmp_path / "script.sh"
    file.write_text(batch_script(job, []).replace(there, gone))
    done = subprocess.run(["bash", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("ran")) == (75, 0), done.stderr
    told = "gpu7 cannot run" if lost == "package" else f"gpu7 does not see {gone}"
    assert f"error: {told}" in done.stderr
    new = next(reversed(script.fake.jobs)) if not requeue else script.id
    jobs = script.fake.jobs
    assert jobs[new]["excluded"] == "gpu5,gpu7"
    assert jobs[waits]["dependency"] == f"afterok:{new}"
    script.fake.set(new, state="RUNNING", nodes="gpu[8-9]")
    script.allot("gpu[8-9]", JOB_ID=new)
    assert script.begin()[ATTEMPT] == "1"
    events = job.attempt_log.events()
    assert [e.excluded for e in events if e.excluded] == [("gpu7",)]
    assert [e.job for e in events if e.what == "sent"][-1] == new
    assert epilogue.excluded(script.job) == ["gpu5", "gpu7"]


def test_what_no_node_has_is_not_the_nodes_fault(script: Script, tmp_path: Path) -> None:
    script.fake.set(script.id, comment="unfit: gpu1 does not see x; unfit: gpu2 does not see x;")
    text = batch_script(script.job, []).replace(sys.executable, "/nowhere/python")
    done = _bash(text)
    assert done.returncode == 127
    assert not [call for call in script.told if call[1] == "requeue"]


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
    done = _bash(batch_script(job, [], array="finetune", tasks=4))
    assert "finetune: ended with code 3" in done.stderr
    assert [e.job for e in script.job.attempt_log.events()] == ["90_3"] * 2
    assert script.told[0] == ["scontrol", "requeue", script.id]  # SLURM's number, not the name


def test_an_attempt_log_without_room_ends_the_job(
    script: Script, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.begin()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(AttemptLog, "append", full)
    assert script.settle(9) == 1
    assert "No space left" in said()
    assert "No space left" in script.fake.jobs[script.id]["comment"]
    assert ["scontrol", "requeue", script.id] not in script.told


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
