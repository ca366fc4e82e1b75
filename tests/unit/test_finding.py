"""Finding one class of two: scores, threshold, balanced sampling, and the presets `find/*`."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import lensdist
from lensdist.cli import main
from lensdist.config import load
from lensdist.config.presets import preset_file
from lensdist.config.schema import schema_of
from lensdist.data.sampler import balanced
from lensdist.metrics import finding
from lensdist.utils.errors import UserError
from lensdist.utils.torchvision_compat import import_torchvision

LENSES = torch.tensor([True, False, True, True, False, False, False, False])
ODDS = torch.tensor([3.0, 2.0, 1.0, 1.0, 1.0, 0.0, -1.0, -2.0])


def test_average_precision_is_the_area_below_the_curve() -> None:
    # Above 3: 1 of 1; above 2: 1 of 2; above 1, where three are equal: 3 of 5.
    found = finding.scores(ODDS, LENSES, 0.5)
    assert found["average_precision"] == pytest.approx(1 / 3 * 1 + 2 / 3 * 3 / 5)
    assert found["prevalence"] == 3 / 8
    # Log-odds of 0 are a probability of 0.5.
    assert (found["purity"], found["completeness"]) == (0.5, 1.0)
    assert found["f1"] == pytest.approx(2 / 3)
    curve = finding.curve(ODDS, LENSES)
    assert curve["completeness"][-1] == 1
    assert curve["purity"][0] == 1


def test_average_precision_is_that_of_torchmetrics() -> None:
    import_torchvision()  # torchmetrics imports it, and fails if its operators do not load
    from torchmetrics.functional.classification import binary_average_precision

    draw = torch.Generator().manual_seed(0)
    odds, truth = torch.randn(200, generator=draw), torch.rand(200, generator=draw) < 0.1
    theirs = float(binary_average_precision(odds.sigmoid(), truth.long()))
    found = finding.scores(odds, truth, 0.5)["average_precision"]
    assert found == pytest.approx(theirs, abs=1e-6)
    low, high = finding.intervals(odds, truth)["average_precision_ci"]
    assert low < found < high
    assert high - low < 0.4


def test_the_threshold_is_that_of_the_highest_f1() -> None:
    best = finding.best_threshold(ODDS, LENSES)
    f1 = {p: finding.scores(ODDS, LENSES, p)["f1"] for p in (best, 0.3, 0.5, 0.8, 0.93, 0.99)}
    assert max(f1, key=lambda p: f1[p]) == best
    assert finding.best_threshold(ODDS, ~LENSES & LENSES) == 0.5
    assert (
        0 < finding.best_threshold(torch.tensor([900.0, -900.0]), torch.tensor([True, False])) < 1
    )
    none = finding.scores(ODDS, ~LENSES & LENSES, 0.999999)
    assert math.isnan(none["completeness"])
    assert math.isnan(none["purity"])


def test_classes_come_equally_often_and_none_before_its_turn() -> None:
    classes = np.array([0] * 90 + [1] * 7)
    each = [balanced(classes, 3, epoch) for epoch in range(4)]
    for places in each:
        assert np.bincount(classes[places]).tolist() == [48, 49]
        assert np.bincount(places[places >= 90]).max() == 7
    assert len(set(np.concatenate(each)[np.concatenate(each) < 90])) == 90
    first, second = (set(each[i][each[i] < 90]) for i in (0, 1))
    assert len(first) == 48
    assert len(first | second) == 90
    assert np.array_equal(each[2], balanced(classes, 3, 2))
    assert not np.array_equal(each[2], balanced(classes, 4, 2))


@pytest.mark.parametrize("preset", ["reference", "best", "small", "debug"])
def test_presets_of_lens_finding_balance_classes(preset: str) -> None:
    cfg = load(preset_file(f"find/{preset}"), ["data.path=PACKED"], schema=schema_of)
    assert cfg.data.balance == "classes"
    assert cfg.task == "common"


@pytest.mark.parametrize(
    "words", [["threshold=0.5"], ["select=average_precision"], ["threshold=1.5", "positive=a"]]
)
def test_settings_that_need_a_class_to_find(words: list[str]) -> None:
    with pytest.raises(UserError):
        load(preset_file("common/debug"), words, schema=schema_of)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lenses are rings in three bands, one image of six; all images have noise."""
    folder = tmp_path_factory.mktemp("find")
    draw = np.random.default_rng(0)
    axis = np.arange(32) - 15.5
    radius = np.hypot(axis[:, None], axis[None])
    for i in range(180):
        kind = "nonlenses" if i % 6 else "lenses"
        light = np.exp(-radius / 4) if i % 6 else np.exp(-(((radius - 8) / 2) ** 2))
        image = light[None] * np.array([0.5, 1, 2])[:, None, None]
        (folder / "raw" / kind).mkdir(parents=True, exist_ok=True)
        image = (image + draw.normal(0, 0.05, (3, 32, 32))).astype(np.float32)
        np.save(folder / "raw" / kind / f"{i}.npy", image)
    assert main(["pack", str(folder / "raw"), str(folder / "packed")]) == 0
    return folder


@pytest.fixture(scope="module")
def found(packed: Path) -> Path:
    run = packed / "run"
    words = (
        f"find/small run.dir={run} data.path={packed / 'packed'} model.image_size=32 "
        "train.global_batch=16 train.epochs=3 train.eval_every_epochs=1"
    )
    assert main(["train", *words.split()]) == 0
    return run


def test_a_lens_finder_is_trained_and_scored(found: Path, packed: Path) -> None:
    data = str(packed / "packed")
    assert main(["evaluate", str(found), "--data", data]) == 0
    scores = json.loads((found / "eval" / "test.json").read_text())["metrics"]
    threshold = lensdist.load(found).description["threshold"]
    assert scores["threshold"] == threshold
    assert 0 < threshold < 1
    assert scores["average_precision"] > 0.9 > scores["prevalence"]
    assert scores["completeness"] > 0.9
    assert (found / "figures" / "purity.png").is_file()


def test_labels_beyond_the_number_set_no_threshold(packed: Path, tmp_path: Path) -> None:
    words = (
        f"find/small run.dir={tmp_path / 'run'} data.path={packed / 'packed'} model.image_size=32 "
        "train.global_batch=16 train.max_steps=1 data.train_images=20"
    )
    assert main(["train", *words.split()]) == 0
    assert lensdist.load(tmp_path / "run").description["threshold"] == 0.5


def test_the_table_names_the_class_by_the_threshold(found: Path, packed: Path) -> None:
    out = packed / "out.csv"
    command = ["predict", str(found), str(packed / "raw"), "--out", str(out), "--overwrite"]
    assert main(command) == 0
    threshold = lensdist.load(found).description["threshold"]
    with out.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["flag"] != "1"]
    assert len(rows) > 150
    for row in rows:
        assert (row["label"] == "lenses") == (float(row["prob_lenses"]) >= threshold)


def test_a_class_that_is_not_there_is_an_error(packed: Path) -> None:
    words = f"find/small run.dir={packed / 'no'} data.path={packed / 'packed'} positive=rings"
    assert main(["train", *words.split(), "model.image_size=32"]) == 2
