"""Preprocessing that takes long: once for every image, the same on any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lensdist.data.config import DataConfig, PreprocessConfig
from lensdist.data.dataset import PackedSet
from lensdist.data.subset import View
from lensdist.data.transforms import Preprocess
from lensdist.training.prepared import PreparedView
from lensdist.utils.errors import UserError
from tests.unit.worlds import FakeWorld, on_all

pytestmark = pytest.mark.unit
PREPROCESS = Preprocess(PreprocessConfig(scale="lens_fit"), [0.0], [1.0])


@pytest.fixture
def view(common_set: Path) -> View:
    cfg = DataConfig(path=common_set)
    return View(PackedSet(common_set), "test", cfg, 0, torch.device("cpu"))


def _prepared(view: View, world: Any) -> PreparedView:
    return PreparedView(view, PREPROCESS, 5, world)


def test_holds_what_preprocessing_makes(view: View) -> None:
    places = np.array([3, 0, 9])
    batch = _prepared(view, FakeWorld()).gather(places)
    raw = view.gather(places)
    assert batch["seen"].shape == (3, 2, 75, 75)
    assert torch.equal(batch["seen"], PREPROCESS(raw["image"]))
    assert torch.equal(batch["label"], raw["label"])
    assert torch.equal(batch["sample"], raw["sample"])
    assert "image" not in batch


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_processes_gets_the_same_bits(view: View, size: int) -> None:
    alone = _prepared(view, FakeWorld())
    assert len(alone) == len(view) == 12
    for shared in on_all(size, lambda world: _prepared(view, world)):
        assert torch.equal(shared._whole["seen"], alone._whole["seen"])
        assert torch.equal(shared._whole["sample"], alone._whole["sample"])


def test_two_channels_in_units_of_the_noise(view: View) -> None:
    seen = PREPROCESS(view.gather(np.arange(len(view)))["image"])
    chi, light = seen.unbind(1)
    smooth = chi[view.gather(np.arange(len(view)))["label"] == 0]
    # Twice two thirds of a standard normal number of four pixels.
    assert 0.8 < float(smooth.std()) / (4 / 3 / 2) < 1.2
    assert float(chi.abs().max()) <= 8
    assert float(light.min()) >= np.log(0.1) / 2 - 1e-6


def test_bad_pixels_are_refused_not_fitted(view: View) -> None:
    image = view.gather(np.array([0]))["image"]
    with pytest.raises(UserError, match="cannot pass over bad pixels or weights"):
        PREPROCESS(image, torch.ones_like(image, dtype=torch.bool))
