"""How a run may end besides well: no number, too long without gain, no disk to stop on."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from lensdist import train
from lensdist.phases import completed
from lensdist.tasks.mae import MaeTask
from lensdist.training import checkpoint, loop
from lensdist.training.stopping import Stopper
from tests.conftest import settings
from tests.runs import record, rows

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("handlers")]


def words(data: Path, run: Path, **more: Any) -> list[str]:
    quick = {"train.max_steps": 20, "train.log_every": 20, "train.eval_every_epochs": 99}
    quick |= {"train.micro_batch": 16, "train.select_from": "best"}
    return settings(
        "mae", data, run, **{"train.micro_batch": 16, "train.select_from": "best", **quick, **more}
    )


def kept(run: Path) -> list[int]:
    return [step for step, _ in checkpoint.steps(run / "checkpoints")]


def scores(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    given = iter(values)
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"mse": next(given)})


def test_a_state_after_a_loss_that_is_no_number_is_never_saved(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    original, calls = MaeTask.loss, 0

    def loss(self: MaeTask, *args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return original(self, *args) * (float("nan") if calls >= 7 else 1)

    monkeypatch.setattr(MaeTask, "loss", loss)
    more = {"checkpoint.every_steps": 5, "checkpoint.keep": 1}
    assert train.main(words(tiny_set, tmp_path, **more)) == 1
    assert "the loss is nan at step 7" in capsys.readouterr().err
    assert kept(tmp_path) == [5]
    assert completed(tmp_path) is None


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_stop_that_could_not_be_saved_does_not_say_run_me_again(
    background: str, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    monkeypatch.setattr(Stopper, "asked", lambda _: "somebody")
    assert train.main(words(tiny_set, tmp_path, **{"checkpoint.background": background})) == 1
    assert "could not be saved" in capsys.readouterr().err
    assert [(r["step"], r["what"]) for r in rows(tmp_path, "event")] == [(1, "not saved")]


def test_early_stop_ends_once_and_for_all(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"train.early_stop": 2, "train.eval_every_epochs": 1, "checkpoint.every_steps": 1}
    scores(monkeypatch, [3.0, 1.0, 2.0, 2.0])
    assert train.main(words(tiny_set, tmp_path, **more)) == 0
    first = record(tmp_path)
    steps = first["steps"]
    assert steps < 20
    assert first["metrics"] == {"selected_by": "val mse", "val": 1.0, "step": steps // 2}
    assert train.main(words(tiny_set, tmp_path, **more)) == 0  # nothing to do
    assert record(tmp_path) == first
    assert train.main(words(tiny_set, tmp_path, **more, **{"train.epochs": 99})) == 2
    (tmp_path / "COMPLETE.json").unlink()  # killed between the last save and the export
    scores(monkeypatch, [])  # a resumed run must not evaluate, or train, again
    assert train.main(words(tiny_set, tmp_path, **more)) == 0
    again = record(tmp_path)
    assert (again["steps"], again["metrics"]) == (steps, first["metrics"])
    for each in (again, first):
        del each["files"]["metrics.jsonl"]  # has one more row: it went on
    assert again["files"] == first["files"]


def test_a_best_checkpoint_that_is_lost_is_not_claimed(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint.write

    def refuse(root: Path, step: int, *rest: Any) -> Path:
        if step == 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(root, step, *rest)

    monkeypatch.setattr(checkpoint, "write", refuse)
    scores(monkeypatch, [1.0, 5.0])  # at steps 10 and 20: the best is the one that was not saved
    assert train.main(words(tiny_set, tmp_path, **{"train.eval_every_epochs": 5})) == 0
    said = "nothing: the last weights; the best, of step 10, are lost"
    assert record(tmp_path)["metrics"] == {"selected_by": said, "val": None, "step": 20}


def test_going_back_to_an_older_checkpoint_is_not_undone_by_newer_ones(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"checkpoint.every_steps": 5, "checkpoint.keep": 3}
    assert train.main(words(tiny_set, tmp_path, **more)) == 0
    assert kept(tmp_path) == [10, 15, 20]
    (tmp_path / "COMPLETE.json").unlink()
    for step in (15, 20):  # both damaged: the run falls back to step 10
        (tmp_path / "checkpoints" / f"step-{step:08d}" / "checkpoint.json").write_text("{}")
    monkeypatch.setattr(Stopper, "asked", lambda _: "somebody")
    changed = {**more, "checkpoint.keep": 1}
    assert train.main(words(tiny_set, tmp_path, **changed)) == 75
    assert kept(tmp_path) == [11]  # with keep 1, the damaged 20 used to push it out
