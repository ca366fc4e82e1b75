"""A run that is killed, stopped or damaged ends in the same bits as one that is not."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lensdist.training import checkpoint
from tests.conftest import LONG, command, forked, settings, shared, start
from tests.runs import assert_same_bits, assert_same_end, newest

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]

STEPS = 14  # of two an epoch
TASKS = ("mae", "finetune", "mass", "common", "sr")

Words = Callable[..., list[str]]
Whole = Callable[[str], Path]


@pytest.fixture(scope="session")
def words(tiny_set: Path, pairs_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Words:
    """The settings of a task's run in a folder: averaged weights, two stages or more."""

    def of(task: str, run: Path, **more: Any) -> list[str]:
        changes: dict[str, Any] = {
            "train.max_steps": STEPS, "train.epochs": 8, "train.ema": 0.9, "train.log_every": 3,
            "optim.schedule": "{kind: cosine, warmup_steps: 1}", "checkpoint.every_steps": 4,
            "checkpoint.keep": 2, "train.eval_every_epochs": 2,
        }  # fmt: skip
        if task in ("finetune", "common"):
            changes["data.labels_per_class"] = 11
        if task == "common":  # heads on kept features, then a section more with each epoch
            changes |= {"unfreeze_epochs": "[3,1,1,1,1,1]", "model.resize": 32}
        if task == "finetune":
            changes |= {"frozen_epochs": 1, "model.head_dropout": 0.2, "augment.rot180": "true"}
        if task == "sr":
            changes |= {"frozen_epochs": 1, "data.train_images": 32}
        if task in ("finetune", "mass", "sr"):
            changes["encoder"] = _whole(tmp_path_factory, of, "mae")
        return settings(task, pairs_set if task == "sr" else tiny_set, run, **changes | more)

    return of


def _whole(factory: pytest.TempPathFactory, words: Words, task: str) -> Path:
    """Not forked like the others, which have one order of sets between them: here it is another."""

    def make(run: Path) -> None:
        done = start(command("lensdist.train", *words(task, run)))
        assert done.returncode == 0, done.stderr

    return shared(factory, f"whole-{task}", make)


@pytest.fixture(scope="session")
def whole(words: Words, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Uninterrupted runs by task, made when they are asked for."""
    return lambda task: _whole(tmp_path_factory, words, task)


@pytest.fixture
def unfinished(whole: Whole, tmp_path: Path) -> Path:
    """A copy of the pretraining that was killed before it was complete."""
    run = tmp_path / "mae"
    shutil.copytree(whole("mae"), run)
    (run / "COMPLETE.json").unlink()
    return run


@pytest.mark.parametrize("task", TASKS)
def test_sigkill_at_random_steps(task: str, words: Words, whole: Whole, tmp_path: Path) -> None:
    run = tmp_path / task
    kills = random.Random(task).sample([n for n in range(1, STEPS) if n != 12], 2)
    plan = [("step", n) for n in kills]
    if task == "mae" or LONG:  # a checkpoint is written alike whatever the task
        plan += [("write", 12), ("rename", STEPS)]
    for when, number in sorted(plan, key=lambda p: p[1]):
        done = forked("tests.faults.killer", when, number, "--", *words(task, run))
        assert done.returncode == -signal.SIGKILL, (when, number, done.stderr)
        assert not (run / "COMPLETE.json").exists()
    done = forked("lensdist.train", *words(task, run))
    assert done.returncode == 0, done.stderr
    assert_same_end(run, whole(task))


def test_stop_signal_saves_and_asks_to_be_run_again(
    words: Words, whole: Whole, tmp_path: Path
) -> None:
    run = tmp_path / "mae"
    done = forked("tests.faults.killer", "term", 6, "--", *words("mae", run))
    assert done.returncode == 75, done.stderr
    assert "step 7: stopped and saved: SIGTERM" in done.stderr
    assert forked("lensdist.train", *words("mae", run)).returncode == 0
    assert_same_end(run, whole("mae"))


def test_stop_file_on_two_processes(words: Words, tmp_path: Path, port: int) -> None:
    run = tmp_path / "mae"
    killer = ("tests.faults.killer", "stop", 6, "--", *words("mae", run))
    done = forked(*killer, processes=2, port=port)
    assert done.returncode == 75, done.stderr
    assert 7 <= newest(run).step < STEPS
    assert not (run / "COMPLETE.json").exists()
    # Somebody wanted it to stop: it does not start again behind their back.
    again = forked("lensdist.train", *words("mae", run))
    assert again.returncode == 2
    assert "delete the file" in again.stderr
    (run / "STOP").unlink()
    assert forked("lensdist.train", *words("mae", run)).returncode == 0


def test_a_checkpoint_elsewhere_only_starts_a_run(
    words: Words, whole: Whole, tmp_path: Path
) -> None:
    run, first = tmp_path / "mae", tmp_path / "first"
    killer = ("tests.faults.killer", "term", 2, "--", *words("mae", first))
    assert forked(*killer).returncode == 75
    origin = checkpoint.steps(first / "checkpoints")[-1][1]
    from_there = [*words("mae", run), f"--resume={origin}"]
    killed = forked("tests.faults.killer", "term", 8, "--", *from_there)
    assert killed.returncode == 75, killed.stderr
    assert f"resumed: {origin.name}" in killed.stderr
    again = forked("lensdist.train", *from_there)
    assert again.returncode == 0, again.stderr
    assert "resumed: step-00000009" in again.stderr  # its own, not the origin again
    assert_same_bits(newest(run), newest(whole("mae")))


def test_a_damaged_checkpoint_is_named_and_passed_over(
    words: Words, whole: Whole, unfinished: Path
) -> None:
    newest = checkpoint.steps(unfinished / "checkpoints")[-1][1] / "state.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    done = forked("lensdist.train", *words("mae", unfinished))
    assert done.returncode == 0, done.stderr
    assert f"{newest}: altered since it was written" in done.stderr
    assert_same_end(unfinished, whole("mae"))


def test_no_whole_checkpoint_is_an_error_not_a_fresh_start(words: Words, unfinished: Path) -> None:
    for _, path in checkpoint.steps(unfinished / "checkpoints"):
        (path / "state.safetensors").write_bytes(b"")
    done = forked("lensdist.train", *words("mae", unfinished))
    assert done.returncode == 1
    assert "is whole" in done.stderr


@pytest.mark.parametrize(
    ("setting", "value"),
    [("optim.lr", 0.5), ("seed", 3), ("model.dim", 64), ("train.micro_batch", 8)],
)
def test_other_settings_are_refused_before_anything_is_written(
    words: Words, unfinished: Path, setting: str, value: float
) -> None:
    before = _times(unfinished)
    done = forked("lensdist.train", *words("mae", unfinished, **{setting: value}))
    assert done.returncode == 2, done.stderr
    assert setting in done.stderr
    assert _times(unfinished) == before


def _times(run: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in run.rglob("*")}


def test_a_finished_run_is_left_alone(words: Words, whole: Whole) -> None:
    run = whole("mae")
    before = _times(run)
    again = forked("lensdist.train", *words("mae", run))
    assert again.returncode == 0
    assert "nothing to do" in again.stderr
    assert forked("lensdist.train", *words("mae", run, seed=1)).returncode == 2
    assert _times(run) == before


def test_the_saved_configuration_replays_the_run(whole: Whole, tmp_path: Path) -> None:
    run = tmp_path / "again"
    done = forked("lensdist.train", f"--config={whole('mae') / 'config.yaml'}", f"run.dir={run}")
    assert done.returncode == 0, done.stderr
    assert_same_end(run, whole("mae"))
