"""`lensdist profile`, and what is measured of a run: the whole command, on a tiny network."""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import pytest
import torch

from lensdist.commands import profile
from lensdist.config import load
from lensdist.config.schema import schema_of
from lensdist.distributed.micro_batches import plan_steps
from lensdist.models.mae import MaskedAutoencoder
from lensdist.models.vit import blocks_of
from lensdist.runs import phase
from lensdist.training import loop
from lensdist.utils.errors import UserError
from tests.conftest import ROOT, settings
from tests.runs import MaeRun

pytestmark = pytest.mark.unit


def _profile(*words: str) -> int:
    parser = argparse.ArgumentParser()
    profile.add_arguments(parser)
    return profile.run(parser.parse_args(words))


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.usefixtures("handlers")
def test_says_where_the_time_goes(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    user, out = tmp_path / "user", tmp_path / "out"
    before = (phase.train, loop.build_strategy, loop.enter)
    words = [w for w in settings("mae", tiny_set, user) if not w.startswith("run.dir")]
    # Epochs of a step or two: the watch must not be led astray by their ends.
    assert _profile(*words, f"--out={out}", "--steps=2") == 0
    printed = capsys.readouterr().out
    assert (phase.train, loop.build_strategy, loop.enter) == before

    assert _files(out) == ["profile.json", "trace.json.gz"]  # and no run
    assert not user.exists()
    found = json.loads((out / "profile.json").read_text())
    assert list(found["parts"]) == ["data", "forward", "backward", "optimizer", "rest"]
    assert sum(p["share"] for p in found["parts"].values()) == pytest.approx(1)
    assert all(p["ms_per_step"] > 0 for p in found["parts"].values())
    assert found["images_per_s"] == pytest.approx(16e3 / found["ms_per_step"])
    rows = found["costliest"]
    assert len(rows) == 10
    assert rows == sorted(rows, key=lambda row: row["ms"], reverse=True)
    assert all(row["name"] in printed or len(row["name"]) > 50 for row in rows)
    assert 0 < sum(row["share"] for row in rows) <= 1

    with gzip.open(out / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    ranges = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    # Two steps of four micro-batches.
    counted = {name: ranges.count(name) for name in ("data", "forward", "backward", "optimizer")}
    assert counted == {"data": 8, "forward": 8, "backward": 8, "optimizer": 2}


@pytest.mark.usefixtures("handlers")
def test_leaves_the_run_where_it_is_told(tiny_set: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    assert _profile(*settings("mae", tiny_set, run), f"--out={out}", "--steps=1") == 0
    assert (run / "config.yaml").is_file()
    assert not list(run.glob("checkpoints/*"))
    assert _files(out) == ["profile.json", "trace.json.gz"]


@pytest.mark.usefixtures("handlers")
def test_leaves_nothing_when_it_fails(tiny_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [w for w in settings("mae", tiny_set, out) if not w.startswith("run.dir")]
    with pytest.raises(UserError, match=r"model\.image_size=64"):
        _profile(f"--out={out}", *words, "model.image_size=32")
    assert _files(out) == []
    with pytest.raises(UserError, match="--steps must be 1 or more"):
        _profile(f"--out={out}", "--steps=0", *words)


def test_the_large_preset() -> None:
    cfg = load(ROOT / "configs/mae/large.yaml", [], schema=schema_of)
    assert isinstance(cfg, MaeRun)
    with torch.device("meta"):
        model = MaskedAutoencoder(cfg.model)
    assert sum(p.numel() for p in model.encoder.parameters()) == 302_645_248  # ViT-L has 304 M
    assert sum(p.numel() for p in model.parameters()) == 320_160_356
    assert len(blocks_of(model)) == 24 + 8
    for processes in (8, 16, 32, 64):
        plan = plan_steps(
            cfg.train.global_batch, cfg.train.micro_batch, cfg.data.stream_epoch, 0, processes
        )
        assert len(plan.mine) == 64 // processes
