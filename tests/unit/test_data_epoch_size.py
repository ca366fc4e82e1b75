"""How many images a run trains on in an epoch, known before it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lensdist.config import load
from lensdist.config.schema import BaseRun, schema_of
from lensdist.data.dataset import PackedSet
from lensdist.data.epoch_size import images_per_epoch
from lensdist.data.subset import View
from lensdist.utils.errors import UserError
from tests.conftest import ROOT

pytestmark = pytest.mark.unit


def _config(preset: str, *changes: str) -> BaseRun:
    words = ["run.dir=run", "data.path=packed", *changes]
    return load(ROOT / "configs" / f"{preset}.yaml", words, schema=schema_of)


def _samples(config: BaseRun) -> int | None:
    return images_per_epoch(config.data, config.run.dir)


@pytest.mark.parametrize("preset", ["mae/debug", "finetune/debug"])
@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("data.classes=[cdm,axion]",),
        ("data.labels_per_class=7",),
        ("data.labels_per_class=7", "data.choose_with=2"),
        ("data.classes=[axion]", "data.labels_per_class=7"),
        ("data.classes=null", "data.train_images=50"),
        ("data.classes=null", "data.train_images=50", "data.choose_with=5"),
    ],
)
def test_samples_are_those_that_a_run_trains_on(
    tiny_set: Path, preset: str, changes: tuple[str, ...]
) -> None:
    config = _config(preset, f"data.path={tiny_set}", *changes)
    view = View(PackedSet(tiny_set), "train", config.data, 0, torch.device("cpu"))
    assert _samples(config) == len(view)


@pytest.mark.parametrize(
    ("fixture", "preset", "n"),
    [
        ("tiny_set", "mae/small", 40),
        ("common_set", "common/debug", 20),
        ("pairs_set", "sr/debug", 20),
    ],
)
def test_samples_of_a_set_that_is_to_be_simulated(
    request: pytest.FixtureRequest, tmp_path: Path, fixture: str, preset: str, n: int
) -> None:
    packed: Path = request.getfixturevalue(fixture)
    there = _samples(_config(preset, f"data.path={packed}"))
    own = _config(preset, "data.path=null", f"data.n_per_class={n}", f"run.dir={tmp_path}")
    assert _samples(own) == there
    (tmp_path / "data").symlink_to(packed)  # once it is there it is looked at
    later = own.model_copy(update={"data": own.data.model_copy(update={"n_per_class": 900})})
    assert _samples(later) == there


def test_samples_that_are_unknown_or_a_stream_s(tmp_path: Path, tiny_set: Path) -> None:
    assert _samples(_config("mae/debug", f"data.path={tmp_path / 'none'}")) is None
    assert _samples(_config("mae/debug", f"data.path={tiny_set}", "data.classes=[vort]")) is None
    many = ("data.classes=null", "data.train_images=5000")
    assert _samples(_config("mae/debug", f"data.path={tiny_set}", *many)) == 96
    stream = ("data.source=stream", "data.stream_epoch=777")
    assert _samples(_config("mae/debug", *stream)) == 777
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is not a valid manifest"):
        _samples(_config("mae/debug", f"data.path={tmp_path}"))
