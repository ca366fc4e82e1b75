"""Every preset runs as it is, networks and losses at full size; only batches and steps are cut.

A few steps reach all its stages; 20, if LONG. `tests/golden` makes 20 with small networks.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import LONG, ROOT, forked
from tests.runs import record

pytestmark = [pytest.mark.unit, pytest.mark.timeout(1500)]

# A processor without instructions for bf16 emulates it, 20 times slower than float32 (measured).
PRECISION = [] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ["precision=no"]


def _train(preset: str, data: Path, run: Path, steps: int, batch: int, *more: str) -> None:
    """A few steps of a few images: it took all of them, and its record says whose they were."""
    steps = 20 if LONG else steps
    words = [f"--config=configs/{preset}.yaml", f"data.path={data}", f"run.dir={run}", *PRECISION]
    words += [f"train.max_steps={steps}", f"train.global_batch={batch}", "train.log_every=1"]
    words += ["train.eval_batch=12", "train.eval_every_epochs=99", "checkpoint.every_epochs=99"]
    words += ["optim.schedule.warmup_steps=0"]
    done = forked("lensdist.train", *words, *more, timeout=1000)
    assert done.returncode == 0, done.stderr
    done = record(run)
    assert (done["steps"], done["preset"]) == (steps, preset.split("/")[1])


COMMON = sorted(p.stem for p in (ROOT / "configs" / "common").glob("*.yaml") if p.stem != "debug")


@pytest.mark.parametrize("preset", COMMON)
def test_a_preset_of_the_common_task(preset: str, common_set: Path, tmp_path: Path) -> None:
    # One step of two images an epoch: every stage of an unfreezing is reached.
    words, steps = ["data.labels_per_class=1", "init=random"], 2
    if preset.startswith("unfreeze"):
        words, steps = [*words, "unfreeze_epochs=[1,1,1,1,1,25]"], 6
        if not LONG:  # `reference` has the same images and networks, at their size
            words += ["model.resize=96"]
    _train(f"common/{preset}", common_set, tmp_path, steps, 2, *words)
    assert record(tmp_path)["config"]["model"]["image_size"] == 150


@pytest.mark.parametrize("preset", ["reference", "best", "small"])
def test_a_preset_pretrains_and_fine_tunes(preset: str, tiny_set: Path, tmp_path: Path) -> None:
    mae, finetune = tmp_path / "mae", tmp_path / "finetune"
    _train(f"mae/{preset}", tiny_set, mae, 2, 4)
    # The recipe freezes the encoder first: an epoch of that, so that both stages are run.
    batch, frozen = (8, 1) if preset == "reference" else (4, 0)
    words = [f"encoder={mae}", f"frozen_epochs={frozen}", "data.labels_per_class=4"]
    _train(f"finetune/{preset}", tiny_set, finetune, 2, batch, *words)


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
    images = pairs_set if mae.startswith("pairs") else tiny_set
    _train(f"mae/{mae}", images, tmp_path / "mae", 2, 2)
    words = [f"encoder={tmp_path / 'mae'}", "data.train_images=4"]
    words += ["frozen_epochs=1"] if "reference" in preset else []  # both stages are run
    _train(f"sr/{preset}", pairs_set, tmp_path / "run", 3, 2, *words)


@pytest.mark.parametrize("task", ["mae", "finetune", "mass", "common", "sr"])
def test_debug_needs_nothing(task: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    images = 24 if task in ("mae", "mass") else 10  # of one class, or of three: all its stages
    words = [f"run.dir={run}", f"data.n_per_class={images}", "optim.schedule.warmup_steps=0"]
    done = forked("lensdist.train", f"--config=configs/{task}/debug.yaml", *words)
    assert done.returncode == 0, done.stderr
    assert record(run)


def test_every_preset_says_its_own_name() -> None:
    for path in sorted((ROOT / "configs").glob("*/*.yaml")):
        preset = yaml.safe_load(path.read_text()).get("preset")
        if path.parent.name in ("mae", "finetune", "mass", "common", "sr"):
            assert preset == path.stem, path
