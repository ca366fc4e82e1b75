"""A run that is killed, stopped or damaged ends in the same bits as one that is not."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lensdist.phases import completed
from lensdist.tracking.metrics_log import read
from lensdist.training import checkpoint
from tests.conftest import command, forked, settings, start

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]

STEPS = 30
TASKS = ("mae", "finetune", "mass", "common", "sr")
FROM_MAE = ("finetune", "mass", "sr")
TIMES = ("images_per_s", "seconds", "data_wait", "mfu", "memory_gb")


def _settings(task: str, data: Path, run: Path, **more: Any) -> list[str]:
    changes: dict[str, Any] = {
        "train.max_steps": STEPS, "train.epochs": 6, "train.ema": 0.9, "train.log_every": 4,
        "optim.schedule": "{kind: cosine, warmup_steps: 3}", "checkpoint.every_steps": 5,
        "checkpoint.keep": 2,
    }  # fmt: skip
    if task == "common":  # heads on kept features, then a section more with each epoch
        changes |= {"train.epochs": 8, "unfreeze_epochs": "[3,1,1,1,1,1]"}
    if task == "finetune":
        changes |= {"frozen_epochs": 1, "model.head_dropout": 0.2, "augment.rot180": "true"}
    if task == "sr":
        changes |= {"frozen_epochs": 1, "train.epochs": 10}
    return settings(task, data, run, **{**changes, **more})


@pytest.fixture(scope="module")
def whole(
    tiny_set: Path, pairs_set: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Uninterrupted runs: a pretraining, what starts from it, and an unfreezing.

    Not forked like the others, which have one order of sets between them: here it is another.
    """
    root = tmp_path_factory.mktemp("whole")
    for task in TASKS:
        data = pairs_set if task == "sr" else tiny_set
        more = {"encoder": root / "mae"} if task in FROM_MAE else {}
        done = start(command("lensdist.train", *_settings(task, data, root / task, **more)))
        assert done.returncode == 0, done.stderr
    return {task: root / task for task in TASKS}


def _same(run: Path, whole: Path) -> None:
    ours, _ = checkpoint.newest(run / "checkpoints")
    theirs, _ = checkpoint.newest(whole / "checkpoints")
    assert ours is not None
    assert theirs is not None
    assert ours.step == theirs.step == STEPS
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        assert torch.equal(tensor, ours.tensors[name]), name
    assert ours.meta["state"] == theirs.meta["state"]
    rows, expected = (
        [
            {k: v for k, v in row.items() if k not in TIMES}
            for row in read(r / "metrics.jsonl")
            if row["kind"] in ("train", "val")
        ]
        for r in (run, whole)
    )
    assert rows == expected
    ours_done, theirs_done = completed(run), completed(whole)
    assert ours_done is not None
    assert theirs_done is not None
    weights = "export/model.safetensors"
    assert ours_done["files"][weights] == theirs_done["files"][weights]


@pytest.mark.parametrize("task", TASKS)
def test_sigkill_at_random_steps(
    task: str, whole: dict[str, Path], tiny_set: Path, pairs_set: Path, tmp_path: Path
) -> None:
    run = tmp_path / task
    more = {"encoder": whole["mae"]} if task in FROM_MAE else {}
    words = _settings(task, pairs_set if task == "sr" else tiny_set, run, **more)
    draw = random.Random(7)
    kills = sorted(draw.sample(range(1, STEPS), 4))
    plan = [("step", n) for n in kills] + [("write", 25), ("rename", STEPS)]
    for when, number in sorted(plan, key=lambda p: p[1]):
        done = forked("tests.faults.killer", when, number, "--", *words)
        assert done.returncode == -signal.SIGKILL, (when, number, done.stderr)
        assert not (run / "COMPLETE.json").exists()
    done = forked("lensdist.train", *words)
    assert done.returncode == 0, done.stderr
    _same(run, whole[task])


def test_stop_signal_saves_and_asks_to_be_run_again(
    whole: dict[str, Path], tiny_set: Path, tmp_path: Path
) -> None:
    run = tmp_path / "mae"
    words = _settings("mae", tiny_set, run)
    done = forked("tests.faults.killer", "term", 13, "--", *words)
    assert done.returncode == 75, done.stderr
    assert "step 14: stopped and saved: SIGTERM" in done.stderr
    assert forked("lensdist.train", *words).returncode == 0
    _same(run, whole["mae"])


def test_stop_file_on_two_processes(
    whole: dict[str, Path], tiny_set: Path, tmp_path: Path, port: int
) -> None:
    run = tmp_path / "mae"
    words = _settings("mae", tiny_set, run)
    killer = ("tests.faults.killer", "stop", 13, "--", *words)
    done = forked(*killer, processes=2, port=port)
    assert done.returncode == 75, done.stderr
    saved, _ = checkpoint.newest(run / "checkpoints")
    assert saved is not None
    assert 14 <= saved.step < STEPS
    assert not (run / "COMPLETE.json").exists()
    # Somebody wanted it to stop: it does not start again behind their back.
    again = forked("lensdist.train", *words)
    assert again.returncode == 2
    assert "delete the file" in again.stderr
    (run / "STOP").unlink()
    assert forked("lensdist.train", *words).returncode == 0


def test_a_checkpoint_elsewhere_only_starts_a_run(
    whole: dict[str, Path], tiny_set: Path, tmp_path: Path
) -> None:
    run = tmp_path / "mae"
    first = _settings("mae", tiny_set, tmp_path / "first")
    assert forked("tests.faults.killer", "term", 6, "--", *first).returncode == 75
    origin = checkpoint.steps(tmp_path / "first" / "checkpoints")[-1][1]
    words = [*_settings("mae", tiny_set, run), f"--resume={origin}"]
    killed = forked("tests.faults.killer", "term", 17, "--", *words)
    assert killed.returncode == 75, killed.stderr
    assert f"resumed: {origin.name}" in killed.stderr
    again = forked("lensdist.train", *words)
    assert again.returncode == 0, again.stderr
    assert "resumed: step-00000018" in again.stderr  # its own, not the origin again
    ours, _ = checkpoint.newest(run / "checkpoints")
    theirs, _ = checkpoint.newest(whole["mae"] / "checkpoints")
    assert ours is not None
    assert theirs is not None
    assert all(torch.equal(t, ours.tensors[n]) for n, t in theirs.tensors.items())


def test_a_damaged_checkpoint_is_named_and_passed_over(
    whole: dict[str, Path], tiny_set: Path, tmp_path: Path
) -> None:
    run = tmp_path / "mae"
    shutil.copytree(whole["mae"], run)
    (run / "COMPLETE.json").unlink()
    newest = checkpoint.steps(run / "checkpoints")[-1][1] / "state.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    done = forked("lensdist.train", *_settings("mae", tiny_set, run))
    assert done.returncode == 0, done.stderr
    assert f"{newest}: altered since it was written" in done.stderr
    _same(run, whole["mae"])


def test_no_whole_checkpoint_is_an_error_not_a_fresh_start(
    whole: dict[str, Path], tiny_set: Path, tmp_path: Path
) -> None:
    run = tmp_path / "mae"
    shutil.copytree(whole["mae"], run)
    (run / "COMPLETE.json").unlink()
    for _, path in checkpoint.steps(run / "checkpoints"):
        (path / "state.safetensors").write_bytes(b"")
    done = forked("lensdist.train", *_settings("mae", tiny_set, run))
    assert done.returncode == 1
    assert "is whole" in done.stderr


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"optim.lr": 0.5}, "optim.lr"),
        ({"seed": 3}, "seed"),
        ({"model.dim": 64}, "model.dim"),
        ({"train.micro_batch": 8}, "train.micro_batch"),
    ],
)
def test_other_settings_are_refused_before_anything_is_written(
    whole: dict[str, Path], tiny_set: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    run = tmp_path / "mae"
    shutil.copytree(whole["mae"], run)
    (run / "COMPLETE.json").unlink()
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    done = forked("lensdist.train", *_settings("mae", tiny_set, run, **changes))
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_a_finished_run_is_left_alone(whole: dict[str, Path], tiny_set: Path) -> None:
    run = whole["mae"]
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    again = forked("lensdist.train", *_settings("mae", tiny_set, run))
    assert again.returncode == 0
    assert "nothing to do" in again.stderr
    other = forked("lensdist.train", *_settings("mae", tiny_set, run, seed=1))
    assert other.returncode == 2
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_the_saved_configuration_replays_the_run(whole: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "again"
    words = [f"--config={whole['mae'] / 'config.yaml'}", f"run.dir={run}"]
    done = forked("lensdist.train", *words)
    assert done.returncode == 0, done.stderr
    _same(run, whole["mae"])
