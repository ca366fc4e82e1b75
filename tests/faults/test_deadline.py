"""A run leaves, saved, before its job's time limit; whoever started it can read how it ended."""

from __future__ import annotations

import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lensdist import train
from lensdist.runs import phase
from lensdist.tasks.mae import MaeTask
from lensdist.tasks.types import Stage
from lensdist.training import loop, stages
from lensdist.training.stopping import Deadline
from lensdist.utils import outcome
from lensdist.utils.launched import DEADLINE, PREFLIGHT
from tests.conftest import ROOT, command, environment, forked, settings, start, until
from tests.runs import assert_same_end, newest, rows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500), pytest.mark.usefixtures("handlers")]

STEPS = 12
SOON = 240.0  # s: no machine is so slow that a run of a second would not end before
KILLER = "tests.faults.killer"


def words(data: Path, run: Path, **more: Any) -> list[str]:
    few: dict[str, Any] = {
        "train.max_steps": STEPS, "train.epochs": 6, "train.ema": 0.9, "train.log_every": 4,
        "checkpoint.every_steps": 50, "optim.schedule": "{kind: cosine, warmup_steps: 3}",
    }  # fmt: skip
    return settings("mae", data, run, **{**few, **more})


def test_a_run_leaves_before_its_limit_and_goes_on_in_the_same_bits(
    tiny_set: Path, tmp_path: Path
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    limit = time.time() + SOON
    killer = (KILLER, "limit", 5, "--", *words(tiny_set, run))
    done = forked(*killer, env=environment(**{DEADLINE: f"{limit:.0f}"}))
    assert done.returncode == 75, done.stderr
    assert time.time() < limit
    assert "step 6: stopped and saved: the job's time limit" in done.stderr
    assert newest(run).step == 6
    assert forked("lensdist.train", *words(tiny_set, whole)).returncode == 0
    done = forked("lensdist.train", *words(tiny_set, run))
    assert done.returncode == 0, done.stderr
    assert "resumed: step-00000006" in done.stderr
    assert newest(run).step == STEPS
    assert_same_end(run, whole)


def test_with_no_time_left_a_step_is_done_and_saved_all_the_same(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEADLINE, f"{time.time():.0f}")
    for step in (1, 2):  # or a chain of short jobs would never get anywhere
        assert train.main(words(tiny_set, tmp_path / "run")) == 75
        assert newest(tmp_path / "run").step == step


def test_what_a_stage_begins_with_does_not_count_as_a_step(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def slowly(*args: Any) -> Any:
        nonlocal now
        now += 1000  # features are kept, say
        return stages.enter(*args)

    monkeypatch.setattr(loop, "enter", slowly)
    monkeypatch.setattr(MaeTask, "stages", lambda *_: [Stage(1, ("",)), Stage(1, ("",))])
    monkeypatch.setattr(phase, "job_ends", lambda _: 2500.0)
    monkeypatch.setattr(phase, "Deadline", partial(Deadline, clock=lambda: now))
    assert train.main(words(tiny_set, tmp_path / "run", **{"train.max_steps": 9})) == 0
    assert now == 2000  # of 2500; one such gap more would not fit in


def test_a_limit_that_is_no_time_is_refused_before_anything_is_written(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEADLINE, "tomorrow")
    monkeypatch.setenv(outcome.FOLDER, str(tmp_path / "words"))
    assert train.main(words(tiny_set, tmp_path / "run")) == 2
    assert not (tmp_path / "run").exists()
    (word,) = outcome.read(tmp_path / "words")
    assert word.kind == "input"
    assert "give seconds since 1970" in word.error


def test_two_processes_get_ready_leave_together_and_say_so(
    tiny_set: Path, tmp_path: Path, port: int
) -> None:
    run, said = tmp_path / "run", tmp_path / "words"
    env = environment(**{DEADLINE: f"{time.time() + SOON:.0f}", PREFLIGHT: "1"})
    env |= {outcome.FOLDER: str(said)}
    killer = (KILLER, "limit", 5, "--", *words(tiny_set, run))
    assert forked(*killer, processes=2, port=port, env=env).returncode == 75
    for what in ("loaded", "device", "ready"):
        assert sorted(w.rank for w in outcome.told(outcome.file_of(said, 0), what)) == [0, 1]
    assert sorted((w.rank, w.kind) for w in outcome.read(said)) == [(0, "saved"), (1, "saved")]
    assert newest(run).step == 6
    last = rows(run, "event")[-1]
    assert (last["what"], last["detail"]) == ("stopped and saved", "the job's time limit")


def test_the_process_that_fell_first_is_known(tiny_set: Path, tmp_path: Path, port: int) -> None:
    said = tmp_path / "words"
    killer = (KILLER, "crash", 5, "--", *words(tiny_set, tmp_path / "run"))
    env = environment(**{outcome.FOLDER: str(said)})
    done = start(command(*killer, processes=2, port=port), env=env)
    assert done.returncode not in (0, 75)
    first, *others = outcome.read(said)
    assert (first.rank, first.kind, first.echo) == (1, "crashed", False)
    assert first.error == "ZeroDivisionError: on purpose"
    assert "in train" in first.traceback
    assert all(word.echo for word in others)  # the launcher may kill it before it has a word


@pytest.mark.parametrize("number", ["SIGUSR2", "SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_before_training_is_no_crash(number: str, tiny_set: Path, tmp_path: Path) -> None:
    """Imports take seconds, and reading data may take minutes: SLURM's signal does not wait."""
    words = command("lensdist.train", *settings("mae", tiny_set, tmp_path / "run"))
    env = environment(LENSDIST_OUTCOME=str(tmp_path / "words"))
    # `import torch` comes after the handlers, and is what takes the time here.
    slow = (
        f"import pathlib, time\npathlib.Path({str(tmp_path / 'there')!r}).touch()\ntime.sleep(300)"
    )
    (tmp_path / "torch.py").write_text(slow)
    env["PYTHONPATH"] = str(tmp_path)
    (tmp_path / "words").mkdir()
    with subprocess.Popen(words, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as run:
        until((tmp_path / "there").exists)
        run.send_signal(signal.Signals[number])
        told = run.communicate(timeout=120)[1]
    assert run.returncode == 75, told
    assert f"({number})" in told
    assert "run it again" in told
    assert "Traceback" not in told
    (word,) = outcome.read(tmp_path / "words")
    assert word.kind == "saved"
    assert not (tmp_path / "run").exists()
