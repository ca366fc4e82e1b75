"""Every preset runs as it is, networks and losses at full size; only batches and steps are cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lensdist.phases import completed
from tests.conftest import ROOT, forked

pytestmark = [pytest.mark.unit, pytest.mark.timeout(1500)]

PRESETS = ("reference", "best", "small")
STEPS = 20


# A processor without instructions for bf16 emulates it, 20 times slower than float32 (measured).
PRECISION = [] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ["precision=no"]


def _cut(data: Path, run: Path, steps: int, batch: int) -> list[str]:
    return [
        *PRECISION,
        f"data.path={data}", f"run.dir={run}", f"train.max_steps={steps}",
        f"train.global_batch={batch}", "train.eval_batch=12", "train.log_every=5",
        "checkpoint.every_steps=1000", "optim.schedule.warmup_steps=0",
    ]  # fmt: skip


def _train(config: str, *words: str) -> None:
    done = forked("lensdist.train", f"--config=configs/{config}.yaml", *words, timeout=1000)
    assert done.returncode == 0, done.stderr


def _check(run: Path, preset: str) -> dict[str, Any]:
    """The run's record: it took all its steps, and says whose they were."""
    record = completed(run)
    assert record is not None
    assert record["steps"] == STEPS
    assert record["preset"] == preset
    return record


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_pretrains_and_fine_tunes(preset: str, tiny_set: Path, tmp_path: Path) -> None:
    mae, finetune = tmp_path / "mae", tmp_path / "finetune"
    _train(f"mae/{preset}", *_cut(tiny_set, mae, STEPS, 4))
    # The recipe freezes the encoder first: an epoch of that, so that both stages are run.
    batch, frozen = (8, 1) if preset == "reference" else (4, 0)
    words = [*_cut(tiny_set, finetune, STEPS, batch), f"encoder={mae}", f"frozen_epochs={frozen}"]
    words += ["data.labels_per_class=8"]
    _train(f"finetune/{preset}", *words)
    for run in (mae, finetune):
        _check(run, preset)


COMMON = sorted(p.stem for p in (ROOT / "configs" / "common").glob("*.yaml") if p.stem != "debug")


@pytest.mark.parametrize("preset", COMMON)
def test_a_preset_of_the_common_task(preset: str, common_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # Two images a step, three steps an epoch: every stage of an unfreezing is reached.
    words = [*_cut(common_set, run, STEPS, 2), "data.labels_per_class=2", "init=random"]
    if preset.startswith("unfreeze"):
        words += ["unfreeze_epochs=[1,1,1,1,1,25]"]
    _train(f"common/{preset}", *words)
    record = _check(run, preset)
    assert record["config"]["model"]["image_size"] == 150


@pytest.mark.parametrize(
    ("mae", "preset"),
    [
        ("reference", "reference"),
        ("pairs", "best"),
        ("pairs-small", "small"),
        ("small-reference", "small-reference"),
    ],
)
def test_a_preset_of_super_resolution(
    mae: str, preset: str, tiny_set: Path, pairs_set: Path, tmp_path: Path
) -> None:
    pretrained, run = tmp_path / "mae", tmp_path / "run"
    images = pairs_set if mae.startswith("pairs") else tiny_set
    _train(f"mae/{mae}", *_cut(images, pretrained, 2, 2))
    words = [*_cut(pairs_set, run, STEPS, 2), f"encoder={pretrained}", "data.train_images=10"]
    words += ["frozen_epochs=1"] if "reference" in preset else []  # both stages are run
    _train(f"sr/{preset}", *words)
    _check(run, preset)


@pytest.mark.parametrize("task", ["mae", "finetune", "mass", "common", "sr"])
def test_debug_needs_nothing(task: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = forked("lensdist.train", f"--config=configs/{task}/debug.yaml", f"run.dir={run}")
    assert done.returncode == 0, done.stderr
    assert completed(run) is not None


def test_every_preset_says_its_own_name() -> None:
    for path in sorted((ROOT / "configs").glob("*/*.yaml")):
        preset = yaml.safe_load(path.read_text()).get("preset")
        if path.parent.name in ("mae", "finetune", "mass", "common", "sr"):
            assert preset == path.stem, path
