"""Images that are unlike the training images are flagged, by limits that travel in the export."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lensdist.data.config import PreprocessConfig
from lensdist.data.limits import limits_of, outside
from lensdist.data.transforms import Preprocess
from lensdist.sim.config import SimConfig
from lensdist.sim.simulator import Simulator
from lensdist.utils import rng
from lensdist.utils.logs import to_stderr

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("n", [20, 300, 3_000])
def test_nearly_all_images_like_those_of_training_are_inside(n: int) -> None:
    draw = torch.Generator().manual_seed(n)
    limits = limits_of({"a": torch.randn(n, generator=draw), "b": torch.rand(n, generator=draw)})
    new = {"a": torch.randn(4_000, generator=draw), "b": torch.rand(4_000, generator=draw)}
    for name, odd in outside(new, limits).items():
        assert float(odd.double().mean()) < 0.005, name
    assert 2.5 < limits["a"][1] < 5
    assert 1 <= limits["b"][1] < 2


def test_what_is_beyond_the_limits_or_no_number_is_outside() -> None:
    values = torch.tensor([0.0, 1.0, 2.0, math.nan, math.inf])
    found = outside({"a": values, "free": values}, {"a": (0.5, 2.0)})
    assert found["a"].tolist() == [True, False, False, True, True]
    assert "free" not in found


def test_limits_are_wider_than_the_quantiles_by_a_tenth_and_more_for_few_images() -> None:
    low, high = limits_of({"a": torch.arange(1001.0)})["a"]  # 5 and 995 are its quantiles
    margin = 990 * (0.1 + 10 / 1001)
    assert (low, high) == pytest.approx((5 - margin, 995 + margin))


def test_one_column_outside_flags_an_image() -> None:
    wide = (-math.inf, math.inf)
    names = ("image_mean", "image_std", "image_max")
    for odd in names:
        limits = dict.fromkeys(names, wide) | {odd: (7.0, 8.0)}
        made = Preprocess(PreprocessConfig(scale="none"), [0.0], [1.0], limits=limits)
        assert made.examine(torch.rand(2, 1, 8, 8)).flagged.all()


def test_what_is_measured_is_measured_in_good_pixels() -> None:
    image = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)) - 2
    good = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.3
    found = Preprocess(PreprocessConfig(scale="none"), [0.0], [1.0]).examine(
        torch.where(good, image, 50.0), good
    )
    for i in range(3):
        pixels = image[i][good.expand_as(image)[i]].double()
        wanted = (pixels.mean(), pixels.std(correction=0), pixels.max())
        assert [float(each[i]) for each in found.columns.values()] == pytest.approx(
            [float(each) for each in wanted], rel=1e-5
        )


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    simulator = Simulator(SimConfig(family="common"))
    return simulator.batch(rng.key(3, "limits"), torch.arange(24))["image"]


def _lens_fit(**more: Any) -> Preprocess:
    return Preprocess(PreprocessConfig(scale="lens_fit"), [0.0], [1.0], **more)


def test_limits_flag_images_and_travel_with_the_state(images: torch.Tensor) -> None:
    free = _lens_fit().examine(images)
    assert not free.flagged.any()
    assert tuple(free.columns) == _lens_fit().columns
    made = _lens_fit(limits=limits_of(free.columns))
    again = Preprocess.from_state(made.state())
    assert again.limits == made.limits
    assert not again.examine(images).flagged.any()
    noise = torch.rand(2, 1, 150, 150, generator=torch.Generator().manual_seed(0))
    found = again.examine(torch.cat([images[:3], noise]))
    assert found.flagged.tolist() == [False] * 3 + [True] * 2
    torch.testing.assert_close(found.seen[:3], free.seen[:3], rtol=0, atol=2e-5)


def test_states_from_before_there_were_limits_flag_nothing(
    images: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    state = _lens_fit().state()
    old = Preprocess.from_state(state)
    assert old.limits is None
    assert not old.examine(torch.rand(2, 1, 150, 150)).flagged.any()
    del state["fit"]  # written by versions with another fit, which gave networks another input
    with to_stderr():
        Preprocess.from_state(_lens_fit().state())
        assert not capsys.readouterr().err
        Preprocess.from_state(state)
    assert "WARNING" in capsys.readouterr().err


def test_scales_that_measure_nothing_have_no_columns(images: torch.Tensor) -> None:
    found = Preprocess(PreprocessConfig(), [0.0], [1.0]).examine(images)
    assert found.columns == {}
    assert not found.flagged.any()
