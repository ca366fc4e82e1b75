"""The common task as a person runs it: from files on a disk to scores, on one and two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lensdist
from tests.conftest import ROOT, forked, free_port, start
from tests.runs import losses, record

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1500)]

STEPS = {1: 80 * (86 // 32), 2: 30}
"""Of the run that learns, on one process; of the one that only is compared with it, on two."""


def _lensdist(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = forked("lensdist", *words)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The public set's layout, twin tree and all: dataset/{train,val}/{no,sphere,vort}/N.npy."""
    root = tmp_path_factory.mktemp("job")
    raw = root / "dataset"
    _lensdist("simulate", "--family", "common", "--n-per-class", 40, "--layout", "raw", raw)
    twin = root / "dataset" / "__MACOSX" / "train" / "no"
    twin.mkdir(parents=True)
    (twin / "._1.npy").write_bytes(b"\0\5\x16\7junk")
    _lensdist("pack", raw, root / "packed")
    return root / "packed"


@pytest.fixture(scope="module")
def runs(packed: Path) -> dict[int, Path]:
    """Our recipe, shortened, on one process and on two; what starts those is tested elsewhere."""
    root = packed.parent
    words = ["lensdist.train", "--config=configs/common/small.yaml", f"data.path={packed}"]
    words += ["train.epochs=80", "train.micro_batch=16", "train.log_every=5"]
    for processes, steps in STEPS.items():
        command = [*words, f"run.dir={root / str(processes)}", f"train.max_steps={steps}"]
        done = forked(*command, processes=processes, port=free_port())
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"on {processes} process(es)" in done.stderr
    return {processes: root / str(processes) for processes in (1, 2)}


def test_both_end_and_agree(runs: dict[int, Path]) -> None:
    for processes, run in runs.items():
        assert record(run)["steps"] == STEPS[processes]
    # Fits are the same to the bit; sums over micro-batches are rounded in another order.
    one, two = (losses(run) for run in runs.values())
    assert two[:4] == pytest.approx(one[:4], rel=1e-5)


def test_is_far_better_than_chance_and_says_so(packed: Path, runs: dict[int, Path]) -> None:
    done = _lensdist("evaluate", runs[1], "--data", packed, "--hard", "4", "--family", "common")
    scores = json.loads((runs[1] / "eval" / "test.json").read_text())["metrics"]
    assert scores["n"] == 24
    assert scores["accuracy"] >= 0.7  # 86 images to learn from; by chance 0.33
    assert len(scores["auc_per_class_ci"]) == 3
    for name in ("auc no", "auc sphere", "auc vort", "mass third", "psf wide"):
        assert name in done.stdout
    drawn = {path.stem for path in (runs[1] / "figures").glob("*.png")}
    assert {"roc", "confusion", "reliability", "learning_curves", "hard"} <= drawn
    _lensdist("report", runs[1], "--out", packed.parent / "table")
    table = json.loads((packed.parent / "table" / "results.json").read_text())
    assert [row["init"] for row in table["rows"]] == ["random"]


def test_the_export_takes_files_as_they_are(packed: Path, runs: dict[int, Path]) -> None:
    model = lensdist.load(runs[1])
    assert model.labels == ("no", "sphere", "vort")
    files = sorted((packed.parent / "dataset" / "val").glob("*/*.npy"))
    images = np.stack([np.load(file) for file in files])
    logits = model.predict(images)["logits"]
    for i in range(0, len(images), 8):  # one of each class; the fit takes as long as of 16
        alone = model.predict(images[i : i + 1])["logits"]
        assert np.abs(logits[i] - alone[0]).max() <= 1e-5
    truth = [model.labels.index(file.parent.name) for file in files]
    assert (logits.argmax(1) == truth).mean() >= 0.7
    with pytest.raises(ValueError, match="image 1 is blank"):
        model.predict(np.stack([images[0], np.zeros_like(images[0])]))
    words = ["export", str(runs[1]), "--out", str(packed.parent / "copy")]
    again = start([sys.executable, "-m", "lensdist", *words])  # it finds all that it imports
    assert again.returncode == 0, again.stderr
    assert "difference" in again.stdout
    done = _lensdist("export", runs[1], "--format", "onnx", "--out", packed.parent / "onnx", code=2)
    assert "lens_fit" in done.stderr
    assert not (packed.parent / "onnx").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["model.members=[resnet19]"], "'resnet19' is neither lensnet nor"),
        (["init=imagenet", "weights.lensnet=nowhere.pth"], "no ImageNet weights for 'lensnet'"),
        (["data.classes=[no]"], "1 classes"),
        (["model.members=[vit_b_16]"], "set model.resize=224"),
        (["preprocess.scale=lens_fit", "model.image_size=64"], "150x150"),
        (["unfreeze=progressive", "train.epochs=3"], "each of the 4 sections"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    settings: list[str], said: str, packed: Path, tmp_path: Path
) -> None:
    words: list[Any] = ["train", "--config", ROOT / "configs/common/small.yaml"]
    words += [f"data.path={packed}", f"run.dir={tmp_path / 'run'}", *settings]
    done = _lensdist(*words, code=2)
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "run").exists()
