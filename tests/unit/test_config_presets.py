"""Presets by name on the command line, and the list of all settings."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from lensdist.cli import main
from lensdist.config import load
from lensdist.config.presets import FOLDER, chosen, preset_file, presets
from lensdist.config.schema import run_schema, schema_of
from lensdist.config.settings import settings
from lensdist.data.epoch_size import images_per_epoch
from lensdist.tasks.registry import built_in
from lensdist.train import add_arguments
from lensdist.utils.arguments import parse
from lensdist.utils.errors import UserError
from tests.conftest import ROOT

pytestmark = pytest.mark.unit


def test_every_preset_has_a_name_and_is_found_by_it() -> None:
    assert {name.partition("/")[0] for name in presets()} == set(built_in())
    for name in presets():
        assert (ROOT / preset_file(name)).samefile(ROOT / "configs" / f"{name}.yaml")


@pytest.mark.parametrize("name", presets())
def test_the_warm_up_of_every_preset_ends_within_it(name: str, tmp_path: Path) -> None:
    cfg = load(preset_file(name), [], schema=schema_of)
    samples = images_per_epoch(cfg.data, tmp_path)
    assert samples is not None
    steps = cfg.train.max_steps or cfg.train.epochs * (samples // cfg.train.global_batch)
    cfg.optim.schedule.check_warmup(steps)
    longer = cfg.optim.schedule.model_copy(update={"warmup_steps": steps + 1})
    with pytest.raises(UserError, match=f"{steps} steps of the run"):
        longer.check_warmup(steps)


@pytest.mark.parametrize(
    ("config", "words", "told"),
    [
        (None, [], "lensdist train mae/debug"),
        (None, ["mae/debgu"], "mae/debug"),
        (None, ["mae"], "lensdist presets"),
        (None, ["configs/mae/debug.yaml"], "--config configs/mae/debug.yaml"),
        (None, ["mae/debug", "mae/best"], "mae/debug, mae/best"),
        (Path("x.yaml"), ["mae/best"], "--config x.yaml, mae/best"),
    ],
)
def test_a_slip_of_the_hand_is_answered_with_what_to_type(
    config: Path | None, words: list[str], told: str
) -> None:
    with pytest.raises(UserError) as error:
        chosen(config, [*words, "seed=1"])
    assert told in str(error.value)


def test_settings_stand_before_and_after_flags() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for line in (
        "mae/debug seed=1 --resume never optim.lr=2",
        "--resume never mae/debug seed=1 optim.lr=2",
        "mae/debug --resume never seed=1 optim.lr=2",
    ):
        args = parse(parser, line.split())
        assert (args.words, args.resume) == (["mae/debug", "seed=1", "optim.lr=2"], "never")
    with pytest.raises(SystemExit):
        parse(parser, ["mae/debug", "--resum3"])


def test_a_preset_and_its_file_are_the_same_run() -> None:
    file, words = chosen(None, ["mae/debug", "optim.lr=2e-3"])
    assert words == ["optim.lr=2e-3"]
    named = load(file, schema=lambda raw: run_schema("mae"))
    given = load(FOLDER / "mae" / "debug.yaml", schema=lambda raw: run_schema("mae"))
    assert named == given


def test_the_list_of_settings_names_every_key_once_with_a_meaning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for task in built_in():
        rows = settings(task)
        keys = [row.key for row in rows]
        assert len(set(keys)) == len(keys)
        assert {"run.dir", "optim.lr", "train.global_batch", "seed"} <= set(keys)
        assert all(row.meaning for row in rows if row.key != "task"), task
    assert main(["settings", "mae/best"]) == 0
    printed = capsys.readouterr().out
    assert "optim.betas = [0.9, 0.95]" in printed
    assert "model.dim = 384" in printed
