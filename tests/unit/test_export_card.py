"""The model card that `lensdist export` writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from lensdist.cli import main
from lensdist.metrics.images import write_images
from lensdist.utils.files import sha256, to_json
from lensdist.utils.sealed import sealed
from tests.conftest import ROOT
from tests.unit.exported import write_model

pytestmark = pytest.mark.unit


def _scored(run: Path, split: str, accuracy: float, digest: str) -> None:
    images = write_images(run / "eval" / f"{split}.safetensors", {"sample": torch.arange(2)})
    scores = {"accuracy": accuracy, "accuracy_ci": [accuracy - 0.01, accuracy + 0.01], "n": 900}
    facts = {"metrics": scores, "weights": {"model.safetensors": digest}, "images": sha256(images)}
    (run / "eval" / f"{split}.json").write_text(to_json(sealed(facts)))


def test_the_card_has_the_scores_of_these_weights_and_says_how_to_use_them(tmp_path: Path) -> None:
    run = write_model(tmp_path / "run", labels=("no_sub", "<b>|cdm", "axion"))
    _scored(run, "test", 0.9132, sha256(run / "export" / "model.safetensors"))
    _scored(run, "val", 0.8, "f" * 64)
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out)]) == 0
    text = (out / "README.md").read_text()
    facts = yaml.safe_load(text.split("---\n")[1])
    assert facts == {"library_name": "lensdist", "tags": ["gravitational-lensing", "finetune"]}
    scores = text.partition("## Scores")[2].partition("## Preprocessing")[0]
    assert re.findall(r"0\.\d+", scores) == [
        "0.913",
        "0.903",
        "0.923",
    ]  # not those of other weights
    assert "<b>" not in text
    assert "&lt;b&gt;\\|cdm" in text
    assert 'lensdist.load("this-folder")' in text
    assert "1 x 64 x 64 pixels" in text
    assert sha256(run / "export" / "model.safetensors") in text


def test_the_citation_has_the_version_of_the_package() -> None:
    import lensdist

    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["version"] == lensdist.__version__
    assert found["license"] == "MIT"
