"""The chain that SLURM runs, on this machine without it: one process, the same job function."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lensdist.phases import completed
from lensdist.tracking.metrics_log import read
from lensdist.utils.files import write_atomic
from slurm.attempts import Event
from slurm.job import Job, Target
from slurm.submission.resume import cancel
from tests.chains import ODD, start_submit, submit, write_chain, write_cluster
from tests.conftest import ROOT, environment
from tests.sockets import children, listeners
from tests.unit.jobs import make_job

pytestmark = [pytest.mark.unit, pytest.mark.timeout(1800)]

# A launcher without its command line, and runs without torch.
_LAUNCHER = """
import sys
from pathlib import Path
from lensdist.utils.errors import RunError
from slurm.job import load_job
from slurm.submission.local_runner import run_locally
files = [Path(word) for word in sys.argv[1:]]
try:
    run_locally({f.stem: load_job(f) for f in files}, print)
except (RunError, KeyboardInterrupt) as e:
    sys.exit(f"{type(e).__name__}: {e}")
"""
_SAVES = """
import os, pathlib, signal, sys, time
from lensdist.utils import outcome
numbers = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
def save(number, frame):
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
    time.sleep(1.5)  # longer than submitit's controller leaves a task that it kills
    pathlib.Path("checkpoints/step-00000003").mkdir(parents=True)
    outcome.leave("saved")
    sys.exit(75)
for number in numbers:
    signal.signal(number, save)
pathlib.Path("ready").write_text(str(os.getpid()))
time.sleep(300)
"""


def test_a_chain_here_goes_on_and_is_looked_after(tiny_set: Path, tmp_path: Path) -> None:
    tmp_path = tmp_path / ODD  # whatever the folder is called
    tmp_path.mkdir()
    chain, here = write_chain(tmp_path, tiny_set), write_cluster(tmp_path)
    runs = tmp_path / "runs"
    submit("submit", chain, here, "cluster.executor=debug", "pretrain")
    assert completed(runs / "pretrain") is not None
    assert not (runs / "finetune").exists()

    # What needs mending is told, and what was sent goes on once it is mended.
    there = tmp_path / "packed"
    words = ["--data-on-nodes", f"finetune.data.path={there}"]
    told = submit("submit", chain, here, *words, code=1)
    assert "pretrain: complete already, skipped" in told.stdout
    assert "is not a packed set" in told.stdout
    assert "error: finetune is not complete; phases that need it were not started" in told.stderr
    page = submit("why", chain, here).stdout
    assert "is not a packed set" in " ".join(page.split())  # its lines are broken
    assert f"resume finetune --chain {shlex.quote(str(chain))}" in page
    there.symlink_to(tiny_set)
    submit("resume", chain, here, "finetune")
    record = completed(runs / "finetune")
    assert record is not None
    assert record["config"]["encoder"] == str(runs / "pretrain")
    # evaluate was sent as well, and needs nothing else: the same word heals it.
    assert "finetune: complete already" not in submit("resume", chain, here).stdout
    scores = json.loads((runs / "finetune" / "eval" / "test.json").read_text())
    assert scores["data"]["path"] == str(there)

    rows = submit("status", chain, here).stdout.splitlines()
    assert rows[0].split()[:4] == ["phase", "job", "state", "attempts"]
    assert [row.split()[2:5] for row in rows[1:3]] == [["done", "1", "6/6"], ["done", "2", "6/6"]]
    assert [row.split()[-1] for row in rows[1:4]] == ["yes"] * 3  # then the hours used
    other = submit("status", chain, here, "finetune", "cluster.nodes=9", "seed=4").stdout
    assert len(other.splitlines()) == 3  # how it was sent need not be said again
    assert "wrote" in submit("logs", chain, here, "evaluate").stdout

    shown = submit("plan", chain, here, "pretrain.optim.lr=0.5").stdout
    assert (
        "runs again because of optim.lr: 0.001 -> 0.5; the old one is kept under another name"
        in shown
    )
    assert "runs again because of pretrain runs again" in shown


def test_a_crash_is_tried_again_and_then_given_up(tmp_path: Path, tiny_set: Path) -> None:
    chain = write_chain(tmp_path, tiny_set)
    here = write_cluster(tmp_path, requeue={"backoff": 0, "crashes": 2})
    # A node whose libraries are broken: the run dies before it can say anything.
    broken = "cluster.env={PYTHONHOME: /nowhere}"
    done = submit("submit", chain, here, "pretrain", broken, code=1)
    assert "pretrain: ended with code 1, without an exit report; requeued" in done.stdout
    assert "2 attempts in a row ended without a new checkpoint" in done.stdout
    page = submit("why", chain, here).stdout
    assert "2 attempts in a row" in page
    assert submit("status", chain, here, "pretrain").stdout.splitlines()[1].split()[2] == "stopped:"


def _job(folder: Path, phase: str, code: str, *needs: str, **cluster: object) -> Job:
    """A phase that runs `code` in a folder of its own, and is complete once that has a table."""
    (folder / phase).mkdir()
    return make_job(
        Target(phase=phase, run=folder / phase, kind="table"),
        folder / ".submit",
        needs=tuple(Target(phase=need, run=folder / need, kind="table") for need in needs),
        argv=("-c", code),
        cluster={"preflight": {"min_free_gb": 0}, "requeue": {"backoff": 0}} | cluster,
        cwd=folder / phase,
    )


def _launch(folder: Path, *jobs: Job) -> subprocess.Popen[str]:
    """`run_locally`, in a process group of its own, by the name that launchers are known by."""
    script = write_atomic(folder / "submit.py", _LAUNCHER)
    files = [str(job.file) for job in jobs]
    return subprocess.Popen(
        [sys.executable, "-u", str(script), *files],
        env=environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 200
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def _events(job: Job) -> list[Event]:
    return job.attempt_log.events()


def _is_alive(process: str) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.parametrize(
    ("executor", "number", "whole"),
    [
        ("local", signal.SIGTERM, False),
        ("local", signal.SIGINT, False),
        ("local", signal.SIGINT, True),
        ("debug", signal.SIGTERM, False),
        ("debug", signal.SIGINT, True),
    ],
)
def test_a_stopped_launcher_waits(executor: str, number: int, whole: bool, tmp_path: Path) -> None:
    job = _job(tmp_path, "train", _SAVES, executor=executor)
    other = _job(tmp_path, "other", "open('started', 'w')", executor=executor)
    with _launch(tmp_path, job, other) as launcher:
        _until((tmp_path / "train" / "ready").exists)
        (os.killpg if whole else os.kill)(launcher.pid, number)
        told = launcher.communicate(timeout=200)[0]
    assert launcher.returncode == 1
    assert "train: cancelled; saved at step 3" in told
    assert "KeyboardInterrupt: \n" in told
    assert "Traceback" not in told
    last = _events(job)[-2:]
    assert [e.what for e in last] == ["cancelled", "ended"]
    assert last[1].verdict == "leave"
    assert not _is_alive((tmp_path / "train" / "ready").read_text())
    assert not (tmp_path / "other" / "started").exists()


@pytest.mark.parametrize("alone", [True, False])
def test_a_phase_that_waits_for_its_next_attempt_is_cancelled(alone: bool, tmp_path: Path) -> None:
    job = _job(tmp_path, "train", "raise SystemExit(9)", requeue={"backoff": 600})
    other = _job(tmp_path, "other", "open('results.json', 'w')")
    said: list[str] = []
    with _launch(tmp_path, job, other) as launcher:
        _until(lambda: _events(job)[-1:] and _events(job)[-1].what == "ended")
        if alone:
            cancel([job.target], tmp_path / ".submit", said.append)
            assert said == ["train: will not be started again"]
        else:
            launcher.terminate()
        told = launcher.communicate(timeout=200)[0]
    assert launcher.returncode == 1
    assert "train: cancelled, not started again" in told
    assert _events(job)[-1].what == "cancelled"
    assert other.target.reached() is alone


def test_a_phase_that_waits_is_cancelled_alone(tmp_path: Path) -> None:
    code = (
        "import pathlib, time\n"
        "pathlib.Path('ready').touch()\n"
        "while not pathlib.Path('go').exists(): time.sleep(0.05)\n"
    )
    done = "import pathlib; pathlib.Path('results.json').write_text('{}')\n"
    jobs = [
        _job(tmp_path, "pretrain", code + done),
        _job(tmp_path, "finetune", done, "pretrain"),
        _job(tmp_path, "evaluate", done, "finetune"),
        _job(tmp_path, "simulate", done),
    ]
    said: list[str] = []
    with _launch(tmp_path, *jobs) as launcher:
        _until((tmp_path / "pretrain" / "ready").exists)
        cancel([jobs[1].target], tmp_path / ".submit", said.append)
        assert said == ["finetune: will not be started"]
        (tmp_path / "pretrain" / "go").touch()
        told = launcher.communicate(timeout=200)[0]
    assert launcher.returncode == 1
    assert "finetune: cancelled, not started\n" in told
    assert "RunError: finetune is not complete; phases that need it were not started" in told
    assert [job.target.reached() for job in jobs] == [True, False, False, True]
    assert [e.what for e in _events(jobs[1])] == ["sent", "cancelled"]
    assert [e.what for e in _events(jobs[2])] == ["sent"]


def test_a_run_listens_locally_and_is_cancelled(tmp_path: Path, tiny_set: Path) -> None:
    chain = write_chain(tmp_path, tiny_set, steps=100_000)
    here = write_cluster(tmp_path, processes_per_node=2)
    many = ["pretrain", "train.epochs=100000", "train.eval_every_epochs=1000"]
    with start_submit(chain, here, *many) as launcher:
        _until(lambda: read(tmp_path / "runs" / "pretrain" / "metrics.jsonl"))
        found = {where for each in children(launcher.pid) for where in listeners(each)}
        assert "asked to save and stop" in submit("cancel", chain, here).stdout
        told = launcher.communicate(timeout=200)[0]
    assert launcher.returncode == 1
    assert "cancelled; saved at step" in told
    assert list((tmp_path / "runs" / "pretrain" / "checkpoints").glob("step-*"))
    assert "none of these phases" in submit("cancel", chain, here).stdout
    assert len(found) >= 3  # gloo's of both, and the store
    assert {address for address, _ in found} == {"127.0.0.1"}
