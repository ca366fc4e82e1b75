"""Descriptions sealed by strangers: refused in a sentence before anything of their size is made."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lensdist
from lensdist.export.artifact import read_export
from lensdist.models.config import EncoderConfig
from lensdist.tasks.encoder import encoder_of
from lensdist.utils.errors import UserError
from lensdist.utils.sealed import sealed, unsealed
from tests.unit.exported import SHAPE, write_model

pytestmark = pytest.mark.unit

MODEL: dict[str, dict[str, Any]] = {
    "10^7 layers": {"depth": 10**7},
    "256 layers": {"depth": 256},
    "a head of 10^5 layers": {"head_dims": [8] * 10**5},
    "a head of 60 layers": {"head_dims": [8] * 60},
    "a million pixels a side": {"image_size": 10**6},
    "a side that is a large prime": {"image_size": 10**18 + 9, "patch_size": 10**18 + 9},
    "tokens 10^7 wide": {"dim": 10**7},
    "10^9 bands": {"in_channels": 10**9},
    "an MLP 10^12 wide": {"mlp_dim": 10**12},
    "a number of 4,000 digits": {"dim": 10**200},
    "a width of zero": {"head_dims": [0]},
    "text for a number": {"dim": "wide"},
    "a list for a number": {"dim": [16]},
    "null": {"dim": None},
}
ELSE: dict[str, dict[str, Any]] = {
    "labels are numbers": {"labels": [1, 2, 3]},
    "labels are lists": {"labels": [["a"], ["b"], ["c"]]},
    "a label twice": {"labels": ["a", "a", "b"]},
    "a label of 10 MB": {"labels": ["a" * 10**7, "b", "c"]},
    "a long label": {"labels": ["a" * 10**4, "b", "c"]},
    "10^6 labels": {"labels": [str(n) for n in range(10**6)]},
    "10^5 labels": {"labels": [str(n) for n in range(10**5)]},
    "a preset that is a number": {"preset": 3},
    "a task that is a list": {"task": ["finetune"]},
    "metrics of text": {"metrics": "good"},
    "3,000 members": {"task": "common", "model": {"members": ["resnet18"] * 3000}},
    "60 members": {"task": "common", "model": {"members": ["lensnet"] * 60}},
    "a member of no such name": {"task": "common", "model": {"members": ["os.system"]}},
    "another task": {"task": "sr", "model": {}},
    "hashes that are a list": {"sha256": ["model.safetensors"]},
    "a hash that is a number": {"sha256": {"model.safetensors": 3}},
    "no hash of the weights": {"sha256": {}},
    "depth without end": {"metrics": json.loads("[" * 200 + "]" * 200)},
    "preprocessing by another task's fit": {
        "preprocessing": {"scale": "lens_fit", "mean": [0], "std": [1]}
    },
    "statistics of text": {"preprocessing": {"scale": "standard", "mean": "x", "std": "y"}},
    "statistics of null": {"preprocessing": {"scale": "standard", "mean": [None], "std": [1]}},
    "statistics of other bands": {
        "preprocessing": {"scale": "asinh", "mean": [1, 2], "std": [1, 2]}
    },
    "a mean without a deviation": {"preprocessing": {"scale": "asinh", "mean": [1], "std": []}},
    "a basis that is missing": {
        "preprocessing": {"scale": "residual", "mean": [1], "std": [1], "residual_rms": 1}
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path)


def describe(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Change `config.json`, and seal it as whoever knows how could do."""
    path = folder / "export" / "config.json"
    facts = unsealed(json.loads(path.read_text()))
    change(facts)
    path.write_text(json.dumps(sealed(facts)))
    return folder


def refused(folder: Path) -> str:
    """The sentence, which comes soon and costs little memory."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as told:
        lensdist.load(folder)
    assert time.monotonic() - began < 10  # 2 s where nothing else runs
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KB
    sentence = str(told.value)
    assert "\n" not in sentence
    assert len(sentence) < 1000
    with pytest.raises(UserError):
        encoder_of(folder, read_export(folder), EncoderConfig(**SHAPE))
    return sentence


@pytest.mark.parametrize("name", MODEL)
def test_a_network_of_no_bounds_is_not_built(folder: Path, name: str) -> None:
    refused(describe(folder, lambda facts: facts["model"].update(MODEL[name])))


@pytest.mark.parametrize("name", ELSE)
def test_what_is_of_another_kind_is_refused(folder: Path, name: str) -> None:
    refused(describe(folder, lambda facts: facts.update(ELSE[name])))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_is_no_file_is_not_waited_for(folder: Path, name: str) -> None:
    path = folder / "export" / name
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in refused(folder)


def test_weights_of_10_gb_of_nothing_are_not_read(folder: Path) -> None:
    with (folder / "export" / "model.safetensors").open("ab") as f:
        f.truncate(10 * 2**30)
    assert "instead of" in refused(folder)


def test_a_model_that_leaves_defaults_out_is_told_them(folder: Path) -> None:
    describe(folder, lambda facts: facts["model"].pop("image_size"))
    assert "image_size" not in read_export(folder)[0]["model"]
    assert lensdist.load(folder).description["model"]["image_size"] == 64
