"""`lensdist bench speed`: what it writes, what it refuses, and that its gate has teeth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness.turns import ROUNDING, gate
from benchmarks.rivals import tasks
from benchmarks.rivals.tasks import Rivals, fill
from benchmarks.speed.figures import time_to
from benchmarks.speed.ladder import Rung, rungs
from benchmarks.speed.session import BARE, UNTURNED, Session, first_rows, parity_steps
from benchmarks.speed.settings import SpeedBench
from lensdist.cli import main
from lensdist.config import load
from lensdist.config.schema import schema_of
from lensdist.data.transforms import Preprocess
from lensdist.tasks.build import build_task
from lensdist.utils.errors import RunError
from tests.conftest import ROOT, settings

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("handlers")]
CPU = torch.device("cpu")


def words(task: str, data: Path, tmp_path: Path, **changes: Any) -> list[str]:
    config, *overrides = settings(task, data, tmp_path / "run", **changes)
    return ["bench", "speed", config, f"--out={tmp_path / 'out'}", *overrides]


def session(task: str, data: Path, tmp_path: Path, **changes: Any) -> Session:
    config, *overrides = settings(task, data, tmp_path / "run", **changes)
    path = ROOT / config.removeprefix("--config=")
    return Session(SpeedBench(config=path, out=tmp_path / "out", overrides=tuple(overrides)))


def test_whole_command(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(tasks, "find_spec", lambda name: None)  # neither timm nor Lightning
    command = words("mae", tiny_set, tmp_path, **{"checkpoint.every_steps": 10})
    single = tmp_path / "single.json"
    single.write_text('{"figures": {"processes": 1, "images_per_s_per_device": 100.0}}')
    assert main([*command, "--window-steps", "1", "--beside", f"--single={single}"]) == 0
    assert "images/s per device" in capsys.readouterr().out
    file = tmp_path / "out" / "speed.json"
    results = json.loads(file.read_text())
    figures = results["figures"]
    each = figures["images_per_s_per_device_each"]
    assert len(each) == 5
    assert sorted(each)[2] == figures["images_per_s_per_device"]
    assert figures["epoch_images"] == 32  # of 40 of the preset's class, less val and test
    rate, flops = figures["images_per_s_per_device"], figures["flops_per_image"]
    assert figures["mfu"] == pytest.approx(rate * flops / figures["product_flops"])
    assert figures["epoch_s"] == pytest.approx(32 / rate)
    assert figures["scaling_efficiency"] == pytest.approx(rate / 100)
    between = 10 * 16 / rate  # seconds of training between two saves
    stall = figures["save_stall_s"]
    assert figures["checkpoint_stall"] == pytest.approx(stall / (between + stall))
    assert 0 < figures["loader_wait"] < 1
    others = results["beside"]
    assert [row["way"] for row in others["rows"]] == ["lensdist", "notebook", "plain loop, memory"]
    assert "PYTHONPATH" in others["left_out"]["timm"]
    assert "lensdist[bench]" in others["left_out"]["Lightning"]
    assert not (tmp_path / "out" / "scratch").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--windows", "4"], "--windows"),
        (["--single", "nowhere.json"], "holds no figures"),
        (["data.path=nowhere"], "nowhere"),
        (["train.global_batch=7"], "whole number of"),
        (["model.image_size=32"], "holds images of 1x64x64"),
    ],
)
def test_mistakes_are_named_before_anything_is_measured(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str,
    monkeypatch: Any,
) -> None:  # fmt: skip
    monkeypatch.chdir(ROOT)
    assert main([*words("mae", tiny_set, tmp_path), *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "speed.json").exists()


@pytest.mark.parametrize("task", ["mae", "finetune", "common", "sr"])
def test_rivals_give_our_losses_and_a_wrong_one_is_refused(
    task: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sets = {"common": "common_set", "sr": "pairs_set"}
    data = request.getfixturevalue(sets.get(task, "tiny_set"))
    more: dict[str, Any] = {} if task == "mae" else {"encoder": "null"}
    if task == "common":
        more = {"init": "random", "unfreeze": "all", "unfreeze_epochs": "null"}
        more |= {"model.image_size": 150, "model.resize": 32}
    here = session(task, data, tmp_path, **more, **{"optim.lr": 1e-3})
    still = here.still(*BARE, *UNTURNED)
    rivals = fill(Rivals(still, tmp_path / "items", first_rows(still), shuffle=False))
    assert rivals.ways
    steps = parity_steps(still)
    gate(rivals.ways, still.way, CPU, here.rounding, steps)  # raises where they differ

    hasty = here.still(*BARE, *UNTURNED, f"optim.lr={10 * still.cfg.optim.lr}")
    wrong = fill(Rivals(hasty, tmp_path / "items", first_rows(hasty), shuffle=False))
    name, way = next(iter(wrong.ways.items()))
    with pytest.raises(RunError, match="not do the same work"):
        gate({name: way}, still.way, CPU, here.rounding, steps)


@pytest.mark.parametrize(
    ("task", "change", "said"),
    [
        ("mae", {"model.decoder": "tokens"}, "model.decoder"),
        ("finetune", {"encoder": "null", "model.stem": "conv"}, "model.stem"),
        ("finetune", {"encoder": "null", "data.classes": "[axion, cdm]"}, "data.classes"),
    ],
)
def test_what_others_cannot_train_is_left_out_with_a_reason(
    tiny_set: Path, tmp_path: Path, task: str, change: dict[str, str], said: str
) -> None:
    ours = session(task, tiny_set, tmp_path, **change).ours()
    rivals = fill(Rivals(ours, tmp_path / "items", first_rows(ours), shuffle=False))
    assert not rivals.ways
    assert said in rivals.left_out["others"]


def test_a_run_is_trained_until_its_score_is_reached(tiny_set: Path, tmp_path: Path) -> None:
    here = session("mae", tiny_set, tmp_path, **{"train.epochs": 3, "train.eval_every_epochs": 1})
    easy = time_to(here, 1e9)
    assert (easy["reached"], easy["step"], len(easy["curve"])) == (True, 2, 1)
    hard = time_to(here, 0.0)
    assert not hard["reached"]
    assert [point["step"] for point in hard["curve"]] == [2, 4, 6]
    seconds = [point["seconds"] for point in hard["curve"]]
    assert seconds == sorted(seconds)


def test_micro_batches_and_saves_of_a_turn(tiny_set: Path, tmp_path: Path) -> None:
    here = session("mae", tiny_set, tmp_path)
    ours = here.ours()
    watch = ours.watch(1, 2, windows=2)
    stalls = ours.turn(watch)
    assert len(stalls) == 3
    assert len(watch.losses) == 4 * (1 + 2 * 2 + 1)  # 16 images in fours, and the step that ends it
    assert len(watch.seconds_each) == len(watch.waited_each) == 2
    assert all(0 < w < s for w, s in zip(watch.waited_each, watch.seconds_each, strict=True))
    whole = here.still("train.micro_batch=null").way.losses(2, CPU)
    parts = here.still().way.losses(2, CPU)
    assert ROUNDING.refuse("parts", parts, whole) < 1e-5


def the_rungs(
    task: str, device: str, processes: int, *more: str, frozen: bool = False
) -> list[Rung]:
    path = ROOT / f"configs/{task}/reference.yaml"
    cfg = load(path, ["run.dir=x", *more], schema=schema_of)
    with torch.device("meta"):
        network = build_task(cfg, ("a", "b", "c"), Preprocess(cfg.preprocess, [0.0], [1.0])).build()
    on = torch.device(device)
    return [*rungs(cfg, network, frozen=frozen, device=on, processes=processes, steps=4)]


def names(*how: Any, **more: Any) -> set[str]:
    return {rung.name for rung in the_rungs(*how, **more)}


def test_the_ladder_has_what_applies() -> None:
    mae = names("mae", "cpu", 1)
    assert {"precision=bf16", "speed.compile=blocks", "data.resident=yes"} <= mae
    assert {"train.micro_batch=8", "train.ema=0.999", "checkpoint.background=false"} <= mae
    assert not any("channels_last" in name or "cuda_graphs" in name for name in mae)
    assert not any("cache" in name for name in mae)
    common = names("common", "cuda", 1)
    assert {"speed.cuda_graphs=true", "speed.channels_last=false", "data.resident=no"} <= common
    assert not any("micro_batch" in name or "recompute" in name for name in common)
    shared = names("mae", "cuda", 8, "train.global_batch=64", "train.micro_batch=4")
    assert {"speed.bucket_mb=25", "train.micro_batch=8"} <= shared
    assert not any("cuda_graphs" in name for name in shared)
    assert "cache.max_gb=0" in names("finetune", "cpu", 1, frozen=True)


@pytest.mark.parametrize("task", ["mae", "finetune", "common", "sr"])
def test_every_rung_is_a_configuration(task: str) -> None:
    path = ROOT / f"configs/{task}/reference.yaml"
    for rung in the_rungs(task, "cuda", 1):
        changed = load(path, ["run.dir=x", *rung.against, *rung.change], schema=schema_of)
        assert changed != load(path, ["run.dir=x", *rung.against], schema=schema_of)
