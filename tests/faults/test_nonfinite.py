"""NaN or infinity in a set that was packed by hand: the sample is named, and nothing crashes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lensdist import cli, train
from lensdist.data.dataset import PackedSet
from lensdist.data.manifest import Manifest, file_info
from lensdist.models.config import MaskConfig
from lensdist.models.masking import make_mask
from tests.conftest import settings

pytestmark = pytest.mark.faults


def spoilt(
    tiny_set: Path, dest: Path, split: str, value: float, count: int = 1000
) -> tuple[Path, int]:
    """A copy of a set, some images of a split with one pixel that is no number; the first's row."""
    shutil.copytree(tiny_set, dest)
    rows = PackedSet(dest).indices(split)[:count]
    images = np.load(dest / "images.npy", mmap_mode="r+")
    images[rows, 0, 5, 5] = value
    images.flush()
    about = Manifest.load(dest)
    files = {**about.files, "images.npy": file_info(dest / "images.npy")}
    about = about.model_copy(update={"files": files})
    about = about.model_copy(update={"fingerprint": about.hash()})
    about = about.model_copy(update={"seal": about.hash(sealed=True)})
    (dest / "manifest.json").write_text(about.model_dump_json())
    return dest, int(rows[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("informative", [0.0, 1.0])
def test_a_mask_is_drawn_whatever_the_pixels(value: float, informative: float) -> None:
    x = torch.rand(2, 1, 64, 64)
    x[1, 0, 3, 3] = value
    cfg = MaskConfig(ratio=0.25, informative=informative)
    mask = make_mask(x, 8, cfg, 0, torch.arange(2))
    assert mask.sum(1).tolist() == [16, 16]
    assert torch.equal(mask[:1], make_mask(x[:1], 8, cfg, 0, torch.arange(1)))


@pytest.mark.parametrize("task", ["mae", "finetune"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_training_names_the_sample(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, split: str
) -> None:
    value, count = (np.nan, 1000) if split == "train" else (np.inf, 1)
    data, row = spoilt(tiny_set, tmp_path / "set", split, value, count)
    words = settings(task, data, tmp_path / "run", **{"train.max_steps": 3, "train.log_every": 1})
    assert train.main([*words, "preprocess.scale=minmax", "data.classes=null"]) == 1
    told = capsys.readouterr().err
    assert "its image holds NaN or infinity; mend or remove it and pack the set again" in told
    assert ".npy): its image" in told  # the file that it was made of
    if count == 1:
        assert PackedSet(data).name_of(row) in told
    assert not (tmp_path / "run" / "COMPLETE.json").exists()


def test_evaluation_names_the_sample(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = settings("mae", tiny_set, run, **{"data.classes": "null", "train.max_steps": 1})
    assert train.main(words) == 0
    data, row = spoilt(tiny_set, tmp_path / "set", "test", np.nan, 1)
    assert cli.main(["evaluate", str(run), "--data", str(data)]) == 1
    assert PackedSet(data).name_of(row) in capsys.readouterr().err
    assert not (run / "eval").exists()


def test_residuals_of_nan_are_refused_by_name(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, row = spoilt(tiny_set, tmp_path / "set", "train", np.nan)
    words = settings("mae", data, tmp_path / "run", **{"preprocess.scale": "residual"})
    assert train.main(words) == 2
    assert PackedSet(data).name_of(row) in capsys.readouterr().err
