"""Which weights a run exports, by how many images, and what old runs did."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lensdist import train
from lensdist.data.config import DataConfig
from lensdist.data.dataset import PackedSet
from lensdist.distributed.config import TrainConfig
from lensdist.export.artifact import read_export
from lensdist.phases import completed
from lensdist.training import loop
from lensdist.training.selection import FEWEST, Selection, selection
from lensdist.training.state import TrainState
from lensdist.utils.errors import UserError
from tests.conftest import ROOT, settings

pytestmark = pytest.mark.unit

OLD = ROOT / "tests" / "golden" / "e08eb66"
FEW = {"labels_per_class": 100}


def selected(train: dict[str, Any], data: dict[str, Any], validated: int = 480) -> Selection:
    return selection(TrainConfig(**train), DataConfig(path="x", **data), 300, validated, 3)


@pytest.mark.parametrize(
    ("train", "data", "validated", "best", "choose"),
    [
        ({}, {}, 3 * FEWEST - 1, False, 0),
        ({}, {}, 3 * FEWEST, True, 3 * FEWEST),
        ({}, FEW, 9_000, False, 0),  # 300 images are 300 images
        ({}, {**FEW, "choose_with": "split"}, 480, False, 0),
        ({}, {**FEW, "choose_with": "split"}, 9_000, True, 9_000),
        ({}, {**FEW, "choose_with": 10}, 30, True, 30),
        ({"select_from": "best"}, {**FEW, "choose_with": "split"}, 480, True, 480),
        ({"select_from": "best"}, {}, 36, True, 36),
        ({"select_from": "last"}, {}, 9_000, False, 0),
        ({"early_stop": 2}, {}, 36, True, 36),
        ({"early_stop": 2, "select_from": "last"}, {}, 36, False, 36),  # its end was chosen
    ],
)
def test_validation_chooses_if_it_is_large_or_asked_to(
    train: dict[str, Any], data: dict[str, Any], validated: int, best: bool, choose: int
) -> None:
    found = selected(train, data, validated)
    assert (found.best, found.choose) == (best, choose)
    assert found.choose + found.watch == validated
    assert found.counts == {"train": 300, "choose": choose}


@pytest.mark.parametrize(
    "train", [{"select_from": "best"}, {"early_stop": 2}, {"early_stop": 2, "select_from": "last"}]
)
def test_a_choice_without_images_for_it_is_refused(train: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"data\.choose_with"):
        selected(train, FEW)


@pytest.mark.parametrize(
    ("way", "values", "better", "best", "step"),
    [
        ("max", [0.5, 0.7, 0.7, 0.6], [True, True, False, False], 0.7, 2),  # the first of equals
        ("min", [0.5, 0.3, 0.3, 0.4], [True, True, False, False], 0.3, 2),
        ("min", [0.5, 0.6, 0.4], [True, False, True], 0.4, 3),
        ("max", [math.nan, 0.5, None, math.inf], [False, True, False, False], 0.5, 2),
    ],
)
def test_the_best_step_is_the_first_with_the_best_score(
    way: str, values: list[float | None], better: list[bool], best: float, step: int
) -> None:
    state, task = TrainState(), SimpleNamespace(select=("score", way))
    for state.step, value in enumerate(values, start=1):
        found = loop._judge(task, state, {"score": value, "other": 0.0})  # type: ignore[arg-type]
        assert found == better[state.step - 1]
    assert (state.best, state.best_step) == (best, step)
    assert state.bad_evals == len(values) - step
    stops = [loop._exhausted(patience, state) for patience in (1, 2, 3, None)]
    assert stops == [state.bad_evals >= 1, state.bad_evals >= 2, False, False]


# ---- whole runs


def words(data: Path, run: Path, **more: Any) -> list[str]:
    short = {"train.max_steps": 6, "train.eval_every_epochs": 0.5, "checkpoint.every_steps": 2}
    return settings("finetune", data, run, **{**short, "encoder": "null", **more})


def scored(data: Path, run: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> dict[str, Any]:
    """Train with scores that are best early; return the run's record."""
    given = iter((0.9, *[0.5] * 99))
    val = set(PackedSet(data).indices("val"))

    def evaluate(*what: Any) -> dict[str, Any]:
        assert set(what[2].rows) <= val
        return {"accuracy": next(given)}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    assert train.main(words(data, run, **more)) == 0
    record = completed(run)
    assert record is not None
    assert read_export(run)[0]["images"] == record["images"]
    return record


@pytest.mark.usefixtures("handlers")
def test_a_run_with_few_labels_takes_its_last_weights_and_says_so(
    tiny_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = scored(tiny_set, tmp_path / "a", monkeypatch, **{"data.labels_per_class": 8})
    assert record["metrics"]["step"] == 6
    assert record["metrics"]["selected_by"] == "nothing: the last weights"
    assert record["metrics"]["val"] is None
    assert record["images"] == {"train": 24, "choose": 0}
    assert "24 images train, none choose" in capsys.readouterr().err
    more = {"data.labels_per_class": 8, "data.choose_with": 2}
    record = scored(tiny_set, tmp_path / "b", monkeypatch, **more)
    assert record["metrics"]["step"] < 6
    assert record["metrics"]["val"] == 0.9
    assert record["images"] == {"train": 18, "choose": 6}
    more = {"data.labels_per_class": 8, "train.select_from": "best"}
    assert train.main(words(tiny_set, tmp_path / "c", **more)) == 2
    assert not (tmp_path / "c").exists()


@pytest.mark.usefixtures("handlers")
def test_a_warm_up_longer_than_the_run_is_refused_before_it_starts(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"optim.schedule.warmup_steps": 7}
    assert train.main(words(tiny_set, tmp_path / "run", **more)) == 2
    assert "set optim.schedule.warmup_steps=0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("handlers")
def test_runs_of_before_the_setting_end_as_they_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their configurations have no such keys: the whole validation split chooses the best."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    assert train.main(["--config=finetune/config.yaml"]) == 0  # complete: nothing to do
    assert train.main(["--config=stopped/config.yaml"]) == 0  # goes on from step 2
    record = completed(Path("stopped"))
    assert record is not None
    assert record["config"]["train"]["select_from"] == "best"
    assert record["config"]["data"]["choose_with"] == "split"
    assert record["metrics"]["selected_by"] == "val accuracy"
    assert record["images"]["choose"] == len(PackedSet(Path("set")).indices("val"))
    # Its configuration has the keys now, which the command still leaves out.
    (Path("stopped") / "COMPLETE.json").unlink()
    assert train.main([f"--config={OLD / 'stopped' / 'config.yaml'}"]) == 0
    again = completed(Path("stopped"))
    assert again is not None
    assert again["config"] == record["config"]
