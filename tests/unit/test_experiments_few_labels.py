"""The few-label benchmark: its arithmetic, its rival, and the whole command at a tiny size."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.few_labels import METHODS, SCRATCH, Scored, write_table
from experiments.residual import ResidualFeatures, logistic_regression
from experiments.runs import Job, run_all
from experiments.settings import FewLabels
from lensdist.phases import COMPLETE
from lensdist.utils.errors import RunError, UserError
from tests.conftest import ROOT, command, environment, forked, start

pytestmark = pytest.mark.unit


def test_residual_sees_what_smooth_images_lack() -> None:
    """A faint point on images of three degrees of freedom, wherever it stands."""
    torch.manual_seed(0)
    basis = torch.randn(3, 1, 16, 16)
    smooth, others = (torch.einsum("nk,kchw->nchw", torch.randn(80, 3), basis) for _ in range(2))
    others[:40, 0, 3, 11] += 1e-3
    others += 1e-5 * torch.randn_like(others)
    features = ResidualFeatures(smooth, components=3)(others)
    labels = (torch.arange(80) < 40).long()
    few = torch.cat([torch.arange(5), torch.arange(75, 80)])
    logits = logistic_regression(features[few], labels[few], features, 2)
    assert (logits.argmax(1) == labels).double().mean() == 1


def test_logistic_regression_is_scikit_learns() -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    torch.manual_seed(1)
    x, y = torch.randn(60, 4).double(), torch.arange(60) % 3
    x[:, 0] += y
    mine = logistic_regression(x, y, x, 3).softmax(1).numpy()
    scaled = ((x - x.mean(0)) / x.std(0)).numpy()
    theirs = sklearn.LogisticRegression(max_iter=1000).fit(scaled, y.numpy())
    np.testing.assert_allclose(mine, theirs.predict_proba(scaled), atol=1e-3)


def test_table_pairs_by_seed_and_image(tmp_path: Path) -> None:
    truth = torch.arange(300) % 3
    right = torch.nn.functional.one_hot(truth, 3).float()[None].repeat(2, 1, 1)
    worse = right.clone()
    worse[:, :30] = worse[:, :30].roll(1, 2)
    cfg = FewLabels(out=tmp_path, labels=(5,), seeds=2, noise=("none",), n_per_class=100)
    cfg = cfg.model_copy(update={"steps": 10, "pretrain_steps": 20})
    scored = [
        Scored("none", 5, SCRATCH, worse, truth, 15),
        Scored("none", 5, "other", right, truth, 15),
    ]
    text = write_table(cfg, scored, SCRATCH).read_text()
    for said in ("10 fine-tuning steps", "20 steps", "n = 300"):
        assert said in text
    scratch, other = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert scratch["accuracy"] == pytest.approx(0.9)
    assert other["over_scratch"] == pytest.approx(0.1)
    low, high = other["over_scratch_ci"]
    assert 0.05 < low < 0.1 < high < 0.15
    assert other["auc_macro"] == 1
    assert other["labels"] == 15
    assert "over_scratch" not in scratch


def test_a_failed_run_is_named_with_what_it_said(tmp_path: Path) -> None:
    job = Job(tmp_path / "run", ("--config=nowhere.yaml",), tmp_path / "log")
    with pytest.raises(RunError, match=r"run failed \(2\): .*nowhere"):
        run_all([job], 1, "test")


def test_whole_command_and_again(tmp_path: Path) -> None:
    """Nothing to a table; an interrupted one goes on; a finished one trains nothing."""
    out = tmp_path / "out"
    words = ["lensdist", "bench", "few-labels", "--out", str(out)]
    words += ["--labels=4", "--seeds=2", "--steps=2", "--pretrain-steps=2", "--noise=none"]
    words += ["--n-per-class=30", "train.global_batch=4", "model.dim=16", "model.depth=1"]
    words += ["optim.schedule.warmup_steps=0"]
    found = start(command(*words))  # it finds all that it imports
    assert found.returncode == 0, found.stderr
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == list(METHODS)
    assert {row["labels"] for row in rows} == {12}
    assert (out / "figures" / "few-labels-none.png").exists()
    runs = sorted((out / "runs" / "none").iterdir())
    assert len(runs) == 3 + 4 * 2
    before = {run: (run / COMPLETE).stat().st_mtime_ns for run in runs}
    lost = runs[0]
    (lost / "eval" / "test-logits.npy").unlink()
    found = forked(*words)
    assert found.returncode == 0, found.stderr
    assert json.loads((out / "results.json").read_text())["rows"] == rows
    assert {run: (run / COMPLETE).stat().st_mtime_ns for run in runs} == before


def test_a_wish_to_stop_reaches_the_runs(tmp_path: Path) -> None:
    """They save, and no process trains on as an orphan."""
    out = tmp_path / "out"
    words = [sys.executable, "-m", "lensdist", "bench", "few-labels", "--out", str(out)]
    words += ["--labels=4", "--seeds=1", "--pretrain-steps=1000000", "--noise=none"]
    words += ["--n-per-class=30", "train.global_batch=4", "model.dim=16", "model.depth=1"]
    words += ["optim.schedule.warmup_steps=0"]
    bench = subprocess.Popen(words, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    run = out / "runs" / "none" / "mae-no_sub"
    log = run / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    bench.send_signal(signal.SIGTERM)
    assert bench.wait(timeout=200) == 75
    assert any((run / "checkpoints").glob("step-*"))
    assert [each.name for each in run.parent.iterdir()] == ["mae-no_sub"]  # none begun after it


def test_other_data_is_refused(tmp_path: Path, tiny_set: Path) -> None:
    from experiments.few_labels import make

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "none").symlink_to(tiny_set)
    with pytest.raises(UserError, match="give another --out"):
        make(FewLabels(out=tmp_path, labels=(5,), noise=("none",), n_per_class=50))
