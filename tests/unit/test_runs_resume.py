"""`--resume PATH`: which checkpoint is meant, and that the best of the run it is of comes along."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lensdist import train
from lensdist.phases import completed
from lensdist.training import checkpoint, loop
from tests.conftest import settings

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("handlers")]


def _train(data: Path, run: Path, steps: int, scores: list[float], *more: str) -> int:
    """Train with these scores, one each 2 steps."""
    quick = {"train.max_steps": steps, "train.micro_batch": 16, "checkpoint.every_steps": 3}
    given, choice = iter(scores), ["train.select_from=best"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", lambda *_: {"mse": next(given)})
        return train.main([*settings("mae", data, run, **quick), "train.ema=0.5", *choice, *more])


@pytest.fixture(scope="module")
def origin(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps whose second is its best, with what is kept of it: steps 2, 4 and 6."""
    run = tmp_path_factory.mktemp("origin") / "run"
    assert _train(tiny_set, run, 6, [1.0, 3.0, 2.0]) == 0
    return run


@pytest.fixture
def theirs(origin: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(origin, tmp_path / "theirs"))


def _exported(run: Path) -> tuple[dict[str, Any], str]:
    record = completed(run)
    assert record is not None
    return record["metrics"], record["files"]["export/model.safetensors"]


@pytest.mark.parametrize("where", ["checkpoints/step-00000006", "checkpoints", "."])
def test_the_best_of_the_other_run_is_exported_where_none_is_better(
    where: str, theirs: Path, tiny_set: Path, tmp_path: Path
) -> None:
    ours = tmp_path / "ours"
    assert _train(tiny_set, ours, 10, [7.0, 7.0], f"--resume={theirs / where}") == 0
    assert _exported(ours) == _exported(theirs)
    assert _exported(ours)[0] == {"selected_by": "val mse", "val": 1.0, "step": 2}
    if where != ".":
        return
    # Through a third run; and where one is better, it is that.
    last = tmp_path / "last"
    assert _train(tiny_set, last, 12, [7.0], f"--resume={ours}") == 0
    assert _exported(last) == _exported(theirs)
    again = tmp_path / "better"
    assert _train(tiny_set, again, 12, [0.5], f"--resume={ours}") == 0
    assert _exported(again)[0] == {"selected_by": "val mse", "val": 0.5, "step": 12}


@pytest.mark.parametrize("harm", ["gone", "flipped", "another"])
def test_a_best_that_is_lost_is_said_at_once_and_in_the_export(
    harm: str, theirs: Path, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = theirs / "checkpoints" / "step-00000002"
    if harm == "flipped":
        data = bytearray((best / "state.safetensors").read_bytes())
        data[-1] ^= 1
        (best / "state.safetensors").write_bytes(data)
    else:
        shutil.rmtree(best)
    if harm == "another":
        shutil.copytree(best.with_name("step-00000006"), best)
    ours = tmp_path / "ours"
    assert _train(tiny_set, ours, 8, [7.0], f"--resume={theirs}") == 0
    assert "the best checkpoint so far, of step 2, is lost" in capsys.readouterr().err
    said = "nothing: the last weights; the best, of step 2, are lost"
    assert _exported(ours)[0] == {"selected_by": said, "val": None, "step": 8}
    assert [path for path in (ours / "checkpoints").iterdir() if path.name.startswith(".")] == []


def test_a_run_that_is_killed_while_it_is_brought_goes_on_from_the_same(
    theirs: Path, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, rename = tmp_path / "ours", Path.rename

    def killed(path: Path, target: Path) -> Path:
        if target.name == "step-00000006":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    assert _train(tiny_set, ours, 8, [7.0], f"--resume={theirs}") == 1
    monkeypatch.undo()
    assert _train(tiny_set, ours, 8, [3.0, 2.0, 7.0], f"--resume={theirs}") == 0
    assert _exported(ours) == _exported(theirs)


def test_what_is_no_checkpoint_is_told_and_nothing_is_written(
    theirs: Path, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = tmp_path / "ours"
    assert _train(tiny_set, ours, 8, [], f"--resume={tmp_path}") == 2
    assert "give RUN/checkpoints/step-" in capsys.readouterr().err
    for _, path in checkpoint.steps(theirs / "checkpoints"):
        (path / "state.safetensors").write_bytes(b"")
    assert _train(tiny_set, ours, 8, [], f"--resume={theirs}") == 2
    assert "no checkpoint there is whole" in capsys.readouterr().err
    assert not ours.exists()


def test_a_checkpoint_that_is_not_used_is_said(
    origin: Path, theirs: Path, tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (theirs / "COMPLETE.json").unlink()
    earlier = theirs / "checkpoints" / "step-00000004"
    assert _train(tiny_set, theirs, 8, [], f"--resume={earlier}") == 2
    assert "step-00000006" in capsys.readouterr().err
    assert _train(tiny_set, theirs, 8, [7.0], f"--resume={origin}") == 0
    assert f"not from {origin}" in capsys.readouterr().err
