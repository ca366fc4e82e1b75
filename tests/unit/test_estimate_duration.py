"""Before a run that takes long on a CPU: how long, and which preset takes less than an hour."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lensdist.config import load
from lensdist.config.schema import schema_of
from lensdist.estimate.duration import LONG, seconds, short, warning, words
from tests.conftest import ROOT, environment

pytestmark = pytest.mark.unit

RATE = 1e11
"""Operations a second: two cores of a laptop."""


def run(preset: str, *words: str) -> Any:
    return load(ROOT / "configs" / f"{preset}.yaml", words, schema=schema_of)


def said(preset: str, *words: str, rate: float = RATE, done: int = 0) -> str | None:
    return warning(run(preset, *words), rate, done, ROOT / "configs" / preset.split("/")[0])


def test_the_recipe_takes_days_and_a_smaller_preset_minutes() -> None:
    text = said("common/reference")
    assert text is not None
    assert text.startswith("this run takes about ")
    assert " days on this CPU; " in text
    assert "configs/common/small.yaml takes about " in text
    assert text.endswith(" minutes")


def test_a_run_of_less_than_an_hour_is_not_announced() -> None:
    assert said("common/debug") is None
    assert said("common/reference", "train.max_steps=3") is None
    cfg = run("common/reference", "train.max_steps=100")
    takes = seconds(cfg, RATE)
    assert takes is not None
    assert said("common/reference", "train.max_steps=100", rate=RATE * takes / LONG * 1.01) is None
    assert said("common/reference", "train.max_steps=100", rate=RATE * takes / LONG * 0.99)


def test_what_is_behind_a_run_is_taken_off() -> None:
    whole = seconds(run("common/reference"), RATE)
    left = seconds(run("common/reference"), RATE, done=12645 // 2)
    assert whole is not None
    assert left == pytest.approx(whole / 2, rel=1e-3)
    assert said("common/reference", done=12644) is None


def test_a_preset_whose_encoder_is_not_there_is_not_named(tmp_path: Path) -> None:
    text = said("finetune/best", "data.n_per_class=100000")
    assert text is not None
    assert "configs/finetune/debug.yaml" in text
    configuration = tmp_path / "mine.yaml"
    configuration.write_text(f"defaults: {ROOT / 'configs/common/reference.yaml'}\n")
    own = warning(load(configuration, [], schema=schema_of), RATE, 0, tmp_path / "none")
    assert own is not None
    assert own.endswith("on this CPU")
    assert said("common/reference", "model.members=[vgg12]") is None  # nobody knows


def test_lengths_of_time_are_rough() -> None:
    found = [words(s) for s in (3600, 5400, 86400, 14 * 86400)]
    assert found == ["60 minutes", "2 hours", "24 hours", "14 days"]
    found = [short(s) for s in (0.123, 12.3, 90, 3540, 12_000)]
    assert found == ["0.12 s", "12 s", "2 min", "59 min", "3:20 h"]


def test_a_real_start_says_so_before_it_simulates_anything(tmp_path: Path) -> None:
    line = ["lensdist.train", "--config=configs/common/reference.yaml", "init=random"]
    command = [sys.executable, "-m", *line, f"run.dir={tmp_path / 'run'}"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.kill()
    assert " WARNING this run takes about " in first
    assert "; configs/common/" in first
