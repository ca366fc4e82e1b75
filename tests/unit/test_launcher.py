"""A launcher decides what the run leaves out, and may contradict nothing that it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lensdist import train
from lensdist.config import dump, load
from lensdist.config.schema import BaseRun, schema_of
from lensdist.runs import accelerate_launch as launcher
from lensdist.runs.accelerate_launch import (
    Settings,
    adopt,
    agreed,
    conflicts,
    from_environment,
    from_file,
    not_installed,
)
from lensdist.utils.errors import UserError
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

OURS = ROOT / "accelerate_config.yaml"
FSDP = Settings(
    "F", {"engine": "fsdp", "shard.stage": 2, "shard.offload": True, "speed.recompute": True}
)
READY = sorted((ROOT / "configs" / "accelerate").iterdir())
ENGINES = {
    **dict.fromkeys(("cpu", "1gpu", "8gpu", "2nodes"), ("ddp", 3)),
    "fsdp-8gpu": ("fsdp", 3),
    "deepspeed-zero2": ("deepspeed", 2),
    "deepspeed-zero3": ("deepspeed", 3),
}
PRESETS = sorted((ROOT / "configs").glob("*/best.yaml"))


def run(*words: str, preset: str = "mae/debug") -> BaseRun:
    """Its steps are 16 images in 4 micro-batches of 4."""
    more = ["train.global_batch=16", "train.micro_batch=4", *words]
    return load(ROOT / f"configs/{preset}.yaml", more, schema=schema_of)


# ---- what the run leaves out


def test_a_launcher_decides_what_the_run_leaves_out() -> None:
    cfg = adopt(run(), FSDP)
    assert (cfg.engine, cfg.shard.stage, cfg.shard.offload) == ("fsdp", 2, True)
    assert cfg.speed.recompute
    assert conflicts(cfg, FSDP) == []
    assert adopt(cfg, FSDP) == cfg


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["shard.stage=3"], ("fsdp", 3, True, True)),
        (["shard.offload=false"], ("fsdp", 2, False, True)),
        (["speed.recompute=false", "speed.bucket_mb=25"], ("fsdp", 2, True, False)),
        (["engine=fsdp"], ("fsdp", 2, True, True)),
        (["engine=ddp"], ("ddp", 3, False, False)),
    ],
)
def test_what_the_run_sets_is_kept(words: list[str], found: tuple[object, ...]) -> None:
    cfg = adopt(run(*words), FSDP)
    assert (cfg.engine, cfg.shard.stage, cfg.shard.offload, cfg.speed.recompute) == found
    assert cfg.speed.bucket_mb == (25 if "speed.bucket_mb=25" in words else 100)
    # What is set by both, and differs, is told.
    assert len(conflicts(cfg, FSDP)) == (words != ["engine=fsdp"])


def test_what_a_file_below_sets_is_kept(tmp_path: Path) -> None:
    """`defaults:` count as the run's own files; their own defaults do not."""
    (tmp_path / "below.yaml").write_text("shard:\n  stage: 3\n")
    file = tmp_path / "run.yaml"
    file.write_text(f"defaults: [{ROOT}/configs/mae/debug.yaml, below.yaml]\n")
    cfg = load(file, [f"run.dir={tmp_path}"], schema=schema_of)
    assert not cfg.model_fields_set & {"engine", "speed"}
    found = adopt(cfg, FSDP)
    assert (found.engine, found.shard.stage, found.shard.offload) == ("fsdp", 3, True)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda file: file.parent.name)
def test_nothing_else_changes(preset: Path) -> None:
    words = ["encoder=runs/mae"] if preset.parent.name in ("finetune", "sr") else []
    words += ["run.dir=runs/x", "speed.compile=no", "train.reproducible=false"]
    cfg = load(preset, words, schema=schema_of)
    assert "engine" not in cfg.model_fields_set
    found = adopt(cfg, Settings("F", {"engine": "deepspeed", "shard.stage": 2}))
    ours, theirs = dump(cfg).splitlines(), dump(found).splitlines()
    changed = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
    assert changed == [("engine: ddp", "engine: deepspeed"), ("  stage: 3", "  stage: 2")]


def test_a_launcher_that_says_nothing_changes_nothing() -> None:
    cfg = run()
    assert adopt(cfg, from_environment({"ACCELERATE_MIXED_PRECISION": "no"})) is cfg
    assert adopt(cfg, from_file(OURS)) is cfg


@pytest.mark.parametrize(
    ("words", "engine", "why"),
    [
        (["train.reproducible=true"], "fsdp", "train.reproducible"),
        (["shard.stage=1"], "fsdp", "fsdp has stages 2 and 3"),
        (["precision=fp16"], "deepspeed", "precision: fp16"),
        (["speed.compile=whole"], "deepspeed", "use compile: blocks"),
    ],
)
def test_an_engine_that_the_run_cannot_have(words: list[str], engine: str, why: str) -> None:
    use = {f"ACCELERATE_USE_{engine.upper()}": "true", "FSDP_VERSION": "2"}
    with pytest.raises(UserError) as e:
        adopt(run(*words), from_environment(use))
    assert str(e.value).startswith(f"accelerate's launcher asks for engine: {engine}, but ")
    assert why in str(e.value)


@pytest.mark.parametrize("file", READY, ids=lambda file: file.stem)
def test_the_ready_files(file: Path) -> None:
    asked = from_file(file)
    cfg = adopt(run(), asked)
    assert (cfg.engine, cfg.shard.stage, cfg.shard.offload) == (*ENGINES[file.stem], False)
    assert conflicts(cfg, asked) == []


# ---- what both say


@pytest.mark.parametrize(
    ("words", "theirs", "sentence"),
    [
        (["engine=ddp"], FSDP.asked, "engine: the run's configuration sets 'ddp' but F sets"),
        (["shard.stage=3"], FSDP.asked, "shard.stage: the run's configuration sets 3 but F sets 2"),
        (["shard.stage=3"], FSDP.asked, "(there it is fsdp_reshard_after_forward)"),
        (["shard.offload=false"], FSDP.asked, "shard.offload: the run's configuration sets false"),
        (["speed.recompute=false"], FSDP.asked, "speed.recompute: the run's configuration sets"),
        (["precision=bf16"], {"precision": "fp16"}, "sets 'bf16' but F sets 'fp16'; "),
        ([], {"precision": "bf16"}, "sets 'no' but F sets 'bf16'; change one of them"),
        ([], {"optim.clip_norm": 1.0}, "optim.clip_norm: the run's configuration sets none but F"),
        (["optim.clip_norm=1"], {"optim.clip_norm": 0.0}, "sets 1.0 but F sets none"),
        ([], {"train.global_batch": "32"}, "train.global_batch: the run's configuration sets 16"),
        ([], {"train.micro_batch": "8"}, "train.micro_batch: the run's configuration sets 4 but F"),
    ],
)
def test_each_contradiction(words: list[str], theirs: dict[str, Any], sentence: str) -> None:
    settings = Settings("F", theirs)
    (found,) = conflicts(adopt(run(*words), settings), settings)
    assert sentence in found


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_precision_that_is_switched_off_is_told(precision: str) -> None:
    (found,) = conflicts(run(f"precision={precision}"), Settings("F", off=("bf16",)))
    assert f"'{precision}' but F switches it off" in found


def test_auto_is_the_part_of_each_process() -> None:
    auto = run("train.micro_batch=auto", "engine=deepspeed")
    eight = {"engine": "deepspeed", "train.micro_batch": "8"}
    two = Settings("F", eight, processes=2)
    assert conflicts(auto, two) == []
    assert conflicts(auto, Settings("F", eight)) == []  # on two it will be so
    (found,) = conflicts(auto, Settings("F", eight, processes=4))
    assert found.startswith("train.micro_batch: the run's configuration sets 4 but F sets 8")
    (found,) = conflicts(
        auto, Settings("F", {"engine": "deepspeed"}, accumulation="2", processes=2)
    )
    assert "sets gradient_accumulation_steps to 2; leave it at 1" in found


def test_all_contradictions_are_told_at_once() -> None:
    asked = {
        "engine": "deepspeed", "precision": "fp8", "optim.clip_norm": 1.0,
        "train.global_batch": "1", "train.micro_batch": "1",
    }  # fmt: skip
    same_engine = {"shard.stage": 1, "shard.offload": True, "speed.recompute": True}
    settings = Settings("F", asked | same_engine, accumulation="3", refused=("is wrong",))
    first, *differences, last = conflicts(run("engine=fsdp"), settings)
    assert first == "F is wrong"
    assert [one.partition(":")[0] for one in differences] == [*asked]
    assert "gradient_accumulation_steps to 3" in last


def test_a_launcher_may_say_the_same() -> None:
    words = ["engine=deepspeed", "shard.stage=1", "precision=bf16", "optim.clip_norm=0.5"]
    asked = {
        "engine": "deepspeed", "shard.stage": 1, "shard.offload": False, "precision": "bf16",
        "train.global_batch": "16", "train.micro_batch": "4", "optim.clip_norm": 0.5,
    }  # fmt: skip
    assert conflicts(run(*words), Settings("F", asked, off=("fp16",), accumulation="2")) == []
    assert conflicts(run(), Settings("F", {"optim.clip_norm": 0.0})) == []


@pytest.mark.parametrize(
    ("engine", "asked", "processes", "right"),
    [
        ("deepspeed", "4", 1, True),
        ("deepspeed", "4", 2, False),
        ("deepspeed", "2", 2, True),
        ("deepspeed", "2", None, True),  # on some number of processes
        ("deepspeed", "3", None, False),
        ("deepspeed", "0", None, False),
        ("deepspeed", "many", None, False),
        ("fsdp", "4", 1, False),  # accelerate's own, by which it would divide
        (None, "4", 1, False),
    ],
)
def test_accumulation_is_the_runs(
    engine: str | None, asked: str, processes: int | None, right: bool
) -> None:
    theirs = {"engine": engine} if engine else {}
    settings = Settings("F", theirs, accumulation=asked, processes=processes)
    found = conflicts(run(f"engine={engine or 'ddp'}"), settings)
    assert [f"F sets gradient_accumulation_steps to {asked}; leave" in one for one in found] == (
        [] if right else [True]
    )


# ---- what is installed, and where it is asked


def test_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "find_spec", lambda name: None)
    assert not_installed(run("engine=fsdp")) == []
    with pytest.raises(UserError, match="deepspeed is not installed; pip install deepspeed, or"):
        agreed(run("engine=deepspeed"), Settings("F"))


def test_a_run_is_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    handlers: None,
) -> None:  # fmt: skip
    monkeypatch.setattr(launcher, "find_spec", lambda name: None)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", "1.0")
    words = ["--config", str(ROOT / "configs/mae/debug.yaml"), f"run.dir={tmp_path / 'run'}"]
    assert train.main(words) == 2
    told = capsys.readouterr().err
    assert "optim.clip_norm: " in told
    assert "deepspeed is not installed" in told
    assert not (tmp_path / "run").exists()
