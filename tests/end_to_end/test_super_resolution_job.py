"""Super-resolution as a user runs it: from HR/ and LR/, or a stream, to scores and files."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lensdist
from tests.conftest import forked, free_port, settings
from tests.runs import record

pytestmark = [pytest.mark.unit, pytest.mark.timeout(900)]


def _run(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = forked("lensdist", *words)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "Dataset"
    _run("simulate", "--family", "sr", "--n-per-class", 14, "--layout", "raw", folder)
    return folder


@pytest.fixture(scope="module")
def job(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files -> packed -> an MAE on LR -> super-resolution on two processes -> evaluated."""
    root = tmp_path_factory.mktemp("job")
    _run("pack", raw, root / "packed", "--pixel-scale", "0.1")
    quick = {"train.epochs": 1, "train.max_steps": 4, "data.classes": "null"}
    mae = {"model.image_size": 75, "model.patch_size": 15}
    _run("train", *settings("mae", root / "packed", root / "mae", **quick, **mae))
    shape = "image_size: 75, patch_size: 15, dim: 32, depth: 1, heads: 2, mlp_dim: 32, dropout: 0.1"
    ours: dict[str, Any] = {"encoder": root / "mae", "model.encoder": f"{{{shape}}}"}
    ours |= {"train.epochs": 8, "frozen_epochs": 2, "train.log_every": 1}
    words = settings("sr", root / "packed", root / "sr", **ours)
    done = forked("lensdist.train", *words, processes=2, port=free_port())
    assert done.returncode == 0, done.stderr
    assert "on 2 process(es)" in done.stderr
    _run("evaluate", root / "sr", "--data", root / "packed", "--hard", 2, "--family", "sr")
    return root


def test_scores_stand_beside_bicubic_s(job: Path) -> None:
    scores = json.loads((job / "sr" / "eval" / "test.json").read_text())["metrics"]
    manifest = json.loads((job / "packed" / "manifest.json").read_text())
    assert scores["n"] == sum(manifest["counts"]["test"].values()) > 0
    for name in ("psnr", "ssim", "mse", "coverage_68", "coverage_95"):
        low, high = scores[f"{name}_ci"]
        assert low <= scores[name] <= high, name
    assert scores["psnr_gain"] == pytest.approx(scores["psnr"] - scores["psnr_bicubic"])
    assert "gap" not in scores  # these files know no truth
    assert (job / "sr" / "figures" / "super_resolution.png").stat().st_size > 10_000
    assert record(job / "sr")["config"]["model"]["exact_means"]
    export = json.loads((job / "sr" / "export" / "config.json").read_text())
    assert (export["task"], export["init"]) == ("sr", "mae")


def test_other_optics_are_scored_with_their_truth(job: Path) -> None:
    variants = json.loads((job / "sr" / "eval" / "hard.json").read_text())["variants"]
    assert list(variants) == ["plain", "psf_wide", "psf_narrow"]
    for scores in variants.values():
        assert scores["n"] == 6
        assert {"gap", "gap_ci", "coverage_68", "psnr_gain"} <= scores.keys()


def test_predicting_keeps_the_light_of_every_file(job: Path, raw: Path) -> None:
    model = lensdist.load(job / "sr")
    for path in sorted((raw / "LR").glob("*.npy"))[:3]:
        lr = np.load(path)
        drawn = model.predict(lr[None])["image"][0]
        means = drawn.reshape(1, 75, 2, 75, 2).mean((2, 4))
        assert np.abs(means - lr).max() < 1e-5


def test_it_is_exported_again_and_reported(job: Path, tmp_path: Path) -> None:
    _run("export", job / "sr", "--out", tmp_path / "copy")
    assert lensdist.load(tmp_path / "copy").task == "sr"
    _run("report", job / "sr", "--out", tmp_path / "table")
    assert "psnr gain" in (tmp_path / "table" / "results.md").read_text()


def test_from_the_stream(job: Path, tmp_path: Path) -> None:
    words = {"data.source": "stream", "data.n_per_class": 10, "train.max_steps": 3}
    _run("train", *settings("sr", Path("null"), tmp_path / "run", **words))
    assert record(tmp_path / "run")["steps"] == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.factor": 3}, "model.factor=2"),
        ({"model.image_size": 64}, "model.image_size=75"),
        ({"data.labels_per_class": 2}, "use data.train_images"),
        ({"data.train_images": 10_000}, "10000 asked for, but the train split has"),
        ({"learn": "truth", "model.exact_means": "false"}, "--truth"),
        ({"learn": "truth"}, "exact_means: false"),
        ({"preprocess.scale": "asinh"}, "use minmax, standard or none"),
        ({"preprocess.scale": "standard"}, "preprocess.scale: standard"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(
    job: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    done = _run("train", *settings("sr", job / "packed", tmp_path / "run", **changes), code=2)
    assert said in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_set_without_pairs_is_refused(tiny_set: Path, tmp_path: Path) -> None:
    words = settings("sr", tiny_set, tmp_path / "run", **{"model.image_size": 64})
    assert "holds no pairs" in _run("train", *words, code=2).stderr


def test_pairs_that_do_not_belong_together_are_named(raw: Path, tmp_path: Path) -> None:
    lone = tmp_path / "lone"
    shutil.copytree(raw, lone)
    (lone / "HR" / "sample3.npy").unlink()
    assert "LR/sample3.npy" in _run("pack", lone, tmp_path / "a", code=2).stderr
    odd = tmp_path / "odd"
    shutil.copytree(raw, odd)
    np.save(odd / "HR" / "sample5.npy", np.random.default_rng(0).random((1, 149, 150)))
    done = _run("pack", odd, tmp_path / "b", "--max-bad", "1")
    report = json.loads((tmp_path / "b" / "report.json").read_text())
    assert "LR/sample5.npy" in str(report), done.stderr
    uneven = tmp_path / "uneven"
    for side, size in (("HR", 149), ("LR", 75)):
        (uneven / side).mkdir(parents=True)
        for i in range(4):
            np.save(uneven / side / f"{i}.npy", np.random.default_rng(i).random((size, size)))
    assert "not a whole multiple" in _run("pack", uneven, tmp_path / "c", code=2).stderr
    for i in range(4):
        np.save(uneven / "HR" / f"{i}.npy", np.random.default_rng(i).random((150, 225)))
    assert "alike both ways" in _run("pack", uneven, tmp_path / "d", code=2).stderr
