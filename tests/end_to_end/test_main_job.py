"""The main job as a user types it, from files to a table, and what is said when it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lensdist
from tests.conftest import command, forked, settings, start
from tests.runs import assert_same_end, newest

pytestmark = [pytest.mark.unit, pytest.mark.timeout(900)]


def _run(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = forked("lensdist", *words)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def _type(*words: object) -> None:
    """Once for each command: it must find in a new process all that it imports."""
    done = start(command("lensdist", *words))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw files -> packed -> pretrained -> fine-tuned -> evaluated -> reported."""
    root = tmp_path_factory.mktemp("job")
    raw = ("--family", "model_ii", "--n-per-class", 40, "--layout", "raw", root / "raw")
    _type("simulate", *raw)
    _type("pack", root / "raw", root / "packed", "--pixel-scale", "0.101")
    quick = {"train.epochs": 2, "train.max_steps": 12}
    _type("train", *settings("mae", root / "packed", root / "mae", **quick))
    words = settings("finetune", root / "packed", root / "finetune", **quick, frozen_epochs=1)
    _run("train", *words, f"encoder={root / 'mae'}")
    _run("evaluate", root / "mae", "--data", root / "packed")
    _type("evaluate", root / "finetune", "--data", root / "packed")
    _type("report", root / "finetune", root / "mae", "--out", root / "report")
    return root


def test_results_hold_every_run(job: Path) -> None:
    rows = json.loads((job / "report" / "results.json").read_text())["rows"]
    assert [r["run"] for r in rows] == ["finetune", "mae"]
    assert rows[0]["init"] == "mae"
    assert (rows[0]["n"], rows[1]["n"]) == (12, 4)  # all classes; the one that the MAE trained on
    assert 0 <= rows[0]["accuracy"] <= 1
    text = (job / "report" / "results.md").read_text()
    assert "finetune" in text
    for line in text.splitlines():
        if line.startswith("!["):
            assert (job / "report" / line.split("(")[1].rstrip(")")).resolve().is_file(), line


def test_evaluation_counts_the_test_split_once(job: Path) -> None:
    scores = json.loads((job / "finetune" / "eval" / "test.json").read_text())["metrics"]
    manifest = json.loads((job / "packed" / "manifest.json").read_text())
    assert np.sum(scores["confusion"]) == sum(manifest["counts"]["test"].values())


def test_the_export_predicts_what_evaluation_scored(job: Path) -> None:
    from lensdist.data.dataset import PackedSet

    model = lensdist.load(job / "finetune")
    assert model.labels == ("no_sub", "cdm", "axion")
    packed = PackedSet(job / "packed")
    rows = packed.indices("test")
    found = model.predict(packed.gather(rows)["image"].numpy())
    accuracy = (found["probs"].argmax(1) == packed.labels[rows]).mean()
    scores = json.loads((job / "finetune" / "eval" / "test.json").read_text())["metrics"]
    assert accuracy == pytest.approx(scores["accuracy"])
    config = json.loads((job / "finetune" / "export" / "config.json").read_text())
    assert config["labels"] == list(model.labels)
    needed = {"task", "preset", "model", "labels", "preprocessing", "metrics"}
    assert needed <= config.keys()


def test_pretraining_saw_only_the_train_split_of_its_classes(job: Path) -> None:
    done = json.loads((job / "mae" / "COMPLETE.json").read_text())
    assert done["config"]["data"]["classes"] == ["no_sub"]
    rows = [json.loads(line) for line in (job / "mae" / "metrics.jsonl").read_text().splitlines()]
    validated = next(r for r in rows if r["kind"] == "val")
    counts = json.loads((job / "packed" / "manifest.json").read_text())["counts"]
    assert validated["n"] == counts["val"]["no_sub"]


def test_a_stream_needs_no_files_and_resumes_in_the_same_bits(tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "data.path": "null", "data.source": "stream", "data.n_per_class": 12, "train.max_steps": 9,
        "data.classes": "null", "data.stream_epoch": 48, "checkpoint.every_steps": 4,
    }  # fmt: skip
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    words = settings("mae", tmp_path, halves, **common)
    assert forked("tests.faults.killer", "term", 4, "--", *words).returncode == 75
    _run("train", *words)
    _run("train", *settings("mae", tmp_path, whole, **common))
    assert newest(whole).step == 9
    assert_same_end(halves, whole)


def test_wandb_offline_stays_in_the_run(tiny_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = {"track.wandb": "offline", "train.max_steps": 4, "train.log_every": 2}
    _run("train", *settings("mae", tiny_set, run, **more))
    assert list((run / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["data.path={tmp}/nothing"], "is not a packed set"),
        (["model.image_size=32"], "model.image_size=64"),
        (["data.classes=[no_sub, wdm]"], "has no class 'wdm'"),
        (["data.classes=[no_sub]"], "two or more"),
        (["data.labels_per_class=1000"], "1000 asked for"),
        (["encoder={tmp}"], "holds no exported model"),
        (["train.global_batch=100000", "train.micro_batch=null"], "more than the"),
        (["optim.lr=-1"], "optim.lr"),
        (["model.mask_ration=3", "seeed=1"], "did you mean 'seed'"),
    ],
)
def test_bad_input_ends_with_2_and_leaves_nothing(
    tiny_set: Path, tmp_path: Path, words: list[str], sentence: str
) -> None:
    run = tmp_path / "run"
    filled = [w.format(tmp=tmp_path) for w in words]
    done = _run("train", *settings("finetune", tiny_set, run), *filled, code=2)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not run.exists()


def test_an_encoder_with_other_preprocessing_is_refused(job: Path, tmp_path: Path) -> None:
    words = settings("finetune", job / "packed", tmp_path / "run", **{"preprocess.scale": "none"})
    done = _run("train", *words, f"encoder={job / 'mae'}", code=2)
    assert "was trained with" in done.stderr


def test_scores_of_other_data_are_not_overwritten(job: Path, tiny_set: Path) -> None:
    before = (job / "finetune" / "eval" / "test.json").read_bytes()
    done = _run("evaluate", job / "finetune", "--data", tiny_set, code=2)
    assert "holds the scores of other data" in done.stderr
    assert (job / "finetune" / "eval" / "test.json").read_bytes() == before


def test_help_and_start_are_torch_free() -> None:
    code = "import sys; sys.argv=['lensdist']\nfrom lensdist.cli import main\n"
    code += "try: main(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules)"
    assert start([sys.executable, "-c", code]).returncode == 0
