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


def run(*words: str) -> BaseRun:
    """Its steps are 16 images in 4 micro-batches of 4."""
    more = ["train.global_batch=16", "train.micro_batch=4", *words]
    return load(ROOT / "configs/mae/debug.yaml", more, schema=schema_of)


def shape(cfg: BaseRun) -> tuple[object, ...]:
    return cfg.engine, cfg.shard.stage, cfg.shard.offload, cfg.speed.recompute


# ---- what the run leaves out


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], ("fsdp", 2, True, True)),
        (["engine=fsdp"], ("fsdp", 2, True, True)),
        (["shard.stage=3"], ("fsdp", 3, True, True)),
        (["shard.offload=false"], ("fsdp", 2, False, True)),
        (["speed.recompute=false"], ("fsdp", 2, True, False)),
        (["engine=ddp"], ("ddp", 3, False, False)),
    ],
)
def test_a_launcher_decides_what_the_run_leaves_out(
    words: list[str], found: tuple[object, ...]
) -> None:
    cfg = adopt(run(*words, "speed.bucket_mb=25"), FSDP)
    assert shape(cfg) == found
    assert cfg.speed.bucket_mb == 25
    assert adopt(cfg, FSDP) == cfg
    # What is set by both, and differs, is told.
    assert len(conflicts(cfg, FSDP)) == (found != ("fsdp", 2, True, True))


def test_what_a_file_below_sets_is_kept(tmp_path: Path) -> None:
    """`defaults:` count as the run's own files; their own defaults do not."""
    (tmp_path / "below.yaml").write_text("shard:\n  stage: 3\n")
    file = tmp_path / "run.yaml"
    file.write_text(f"defaults: [{ROOT}/configs/mae/debug.yaml, below.yaml]\n")
    cfg = load(file, [f"run.dir={tmp_path}"], schema=schema_of)
    assert not cfg.model_fields_set & {"engine", "speed"}
    assert shape(adopt(cfg, FSDP)) == ("fsdp", 3, True, True)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda file: file.parent.name)
def test_nothing_else_changes(preset: Path) -> None:
    words = ["encoder=runs/mae"] if preset.parent.name in ("finetune", "sr") else []
    words += ["data.path=packed"] if preset.parent.name == "find" else []
    words += ["run.dir=runs/x", "speed.compile=no", "train.reproducible=false"]
    cfg = load(preset, words, schema=schema_of)
    found = adopt(cfg, Settings("F", {"engine": "deepspeed", "shard.stage": 2}))
    ours, theirs = dump(cfg).splitlines(), dump(found).splitlines()
    changed = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
    assert changed == [("engine: ddp", "engine: deepspeed"), ("  stage: 3", "  stage: 2")]


def test_a_launcher_that_says_nothing_changes_nothing() -> None:
    cfg = run()
    assert adopt(cfg, from_environment({"ACCELERATE_MIXED_PRECISION": "no"})) is cfg
    assert adopt(cfg, from_file(ROOT / "accelerate_config.yaml")) is cfg


@pytest.mark.parametrize(
    ("word", "engine", "why"),
    [
        ("train.reproducible=true", "fsdp", "train.reproducible"),
        ("shard.stage=1", "fsdp", "shard.stage"),
        ("precision=fp16", "deepspeed", "precision: fp16"),
        ("speed.compile=whole", "deepspeed", "speed.compile"),
    ],
)
def test_an_engine_that_the_run_cannot_have(word: str, engine: str, why: str) -> None:
    with pytest.raises(UserError, match=f"^F asks for engine: {engine}, but {why}"):
        adopt(run(word), Settings("F", {"engine": engine}))


@pytest.mark.parametrize("file", READY, ids=lambda file: file.stem)
def test_the_ready_files(file: Path) -> None:
    asked = from_file(file)
    cfg = adopt(run(), asked)
    assert shape(cfg) == (*ENGINES[file.stem], False, False)
    assert conflicts(cfg, asked) == []


# ---- what both say


@pytest.mark.parametrize(
    ("word", "theirs", "told"),
    [
        ("engine=ddp", FSDP.asked, "engine: 'ddp' 'fsdp' (--multi_gpu"),
        ("shard.stage=3", FSDP.asked, "shard.stage: 3 2 (there it is fsdp_reshard"),
        ("shard.offload=false", FSDP.asked, "shard.offload: false true (there it is fsdp_offload"),
        ("speed.recompute=false", FSDP.asked, "speed.recompute: false true"),
        ("precision=bf16", {"precision": "fp16"}, "precision: 'bf16' 'fp16'"),
        ("precision=no", {"precision": "bf16"}, "precision: 'no' 'bf16'"),
        ("seed=0", {"optim.clip_norm": 1.0}, "optim.clip_norm: none 1.0"),
        ("optim.clip_norm=1", {"optim.clip_norm": 0.0}, "optim.clip_norm: 1.0 none"),
        ("seed=0", {"train.global_batch": "32"}, "train.global_batch: 16 32"),
        ("seed=0", {"train.micro_batch": "8"}, "train.micro_batch: 4 8"),
    ],
)
def test_each_contradiction_is_a_sentence(word: str, theirs: dict[str, Any], told: str) -> None:
    settings = Settings("F", theirs)
    (found,) = conflicts(adopt(run(word), settings), settings)
    short = found.replace("the run's configuration sets ", "").replace(" but F sets", "")
    assert short.replace("; change one of them", "").startswith(told)


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_precision_that_is_switched_off_is_told(precision: str) -> None:
    (found,) = conflicts(run(f"precision={precision}"), Settings("F", off=("bf16",)))
    assert f"'{precision}' but F switches it off" in found


@pytest.mark.parametrize(
    ("processes", "steps", "told"),
    [
        (2, None, []),
        (None, None, []),  # on two it will be so
        (4, None, ["train.micro_batch"]),
        (2, "2", ["F sets gradient_accumulation_steps to 2"]),
    ],
)
def test_auto_is_the_part_of_each_process(
    processes: int | None, steps: str | None, told: list[str]
) -> None:
    asked = {"engine": "deepspeed", "train.micro_batch": "8"}
    found = conflicts(
        run("train.micro_batch=auto", "engine=deepspeed"),
        Settings("F", asked, accumulation=steps, processes=processes),
    )
    assert [one.partition(": ")[0].partition(";")[0] for one in found] == told


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
        ("ddp", "4", 1, False),
    ],
)
def test_accumulation_is_the_runs(
    engine: str, asked: str, processes: int | None, right: bool
) -> None:
    settings = Settings("F", {"engine": engine}, accumulation=asked, processes=processes)
    found = conflicts(run(f"engine={engine}"), settings)
    assert [f"steps to {asked}; leave" in one for one in found] == ([] if right else [True])


# ---- what is installed, and where it is asked


def test_an_engine_that_is_not_installed_is_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    handlers: None,
) -> None:  # fmt: skip
    monkeypatch.setattr(launcher, "find_spec", lambda name: None)
    assert not_installed(run("engine=fsdp")) == []
    with pytest.raises(UserError, match="pip install deepspeed"):
        agreed(run("engine=deepspeed"), Settings("F"))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", "1.0")
    words = ["--config", str(ROOT / "configs/mae/debug.yaml"), f"run.dir={tmp_path / 'run'}"]
    assert train.main(words) == 2
    told = capsys.readouterr().err
    assert "optim.clip_norm: " in told
    assert "deepspeed is not installed" in told
    assert not (tmp_path / "run").exists()
