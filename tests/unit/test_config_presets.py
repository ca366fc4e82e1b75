"""Presets by name on the command line, and the list of all settings."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from lensdist.cli import main
from lensdist.config import load
from lensdist.config.other_tools import OURS
from lensdist.config.presets import FOLDER, MORE, chosen, preset_file, presets
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
    assert {name.partition("/")[0] for name in presets()} == {*built_in(), *MORE}
    for name in presets():
        assert (ROOT / preset_file(name)).samefile(ROOT / "configs" / f"{name}.yaml")


@pytest.mark.parametrize("name", presets())
def test_the_warm_up_of_every_preset_ends_within_it(name: str, tmp_path: Path) -> None:
    own = name.startswith("find/") and name != "find/debug"  # they need data of the user's
    words = ["data.path=PACKED"] if own else []
    cfg = load(preset_file(name), words, schema=schema_of)
    samples = 1000 if own else images_per_epoch(cfg.data, tmp_path)
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
        (None, ["mae"], "mae/debug"),
        (None, ["zzz"], "lensdist presets"),
        (Path("mae/debug"), [], "without --config"),
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


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (["--lr", "1e-4"], "optim.lr"),
        (["--batch-size=4"], "train.global_batch"),
        (["--fp16", "--seed", "1"], "precision"),
        (["--optim.lr", "1e-4"], "optim.lr=1e-4"),
    ],
)
def test_a_setting_typed_as_a_flag_is_answered_with_its_key(flags: list[str], key: str) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    file, settings = chosen(None, parse(parser, ["mae/debug", *flags]).words)
    with pytest.raises(UserError) as error:
        load(file, settings, schema=schema_of)
    assert key in str(error.value)


@pytest.mark.parametrize("tool", sorted(set(OURS.values())))
def test_what_other_tools_call_a_key_leads_to_a_key_that_is_there(tool: str) -> None:
    """Of some task at least: not every task has an encoder."""
    assert any(tool == row.key for task in built_in() for row in settings(task))


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
