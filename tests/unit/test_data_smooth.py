"""The smooth part of images, and preprocessing by what it leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lensdist.data import smooth
from lensdist.data.config import PreprocessConfig
from lensdist.data.dataset import PackedSet
from lensdist.data.smooth import Smooth, fit_smooth, principal
from lensdist.data.transforms import Preprocess
from lensdist.sim.config import SimConfig
from lensdist.sim.simulator import Simulator
from lensdist.utils.errors import UserError

pytestmark = pytest.mark.unit


@pytest.fixture
def basis() -> Smooth:
    torch.manual_seed(0)
    return principal(torch.randn(30, 1, 8, 8), 5)


def test_components_are_those_of_the_decomposition() -> None:
    torch.manual_seed(1)
    images = torch.randn(40, 2, 6, 6) * torch.linspace(1, 3, 6)
    mine = principal(images, 7)
    flat = images.flatten(1).double()
    rows = torch.linalg.svd(flat - flat.mean(0), full_matrices=False).Vh[:7].float()
    torch.testing.assert_close(mine.rows.T @ mine.rows, rows.T @ rows, atol=1e-5, rtol=0)
    torch.testing.assert_close(mine.rows @ mine.rows.T, torch.eye(7), atol=1e-5, rtol=0)


def test_no_more_components_than_the_images_have() -> None:
    directions = torch.randn(3, 1, 8, 8)
    images = torch.einsum("nk,kchw->nchw", torch.randn(50, 3), directions)
    found = principal(images, 20)
    assert len(found.rows) == 3
    torch.testing.assert_close(found.of(images), images, atol=1e-5, rtol=0)


def test_alone_in_any_batch_and_under_autocast(basis: Smooth) -> None:
    """Autocast would project in bfloat16, whose rounding is larger than substructure."""
    images = 1 + torch.randn(5, 1, 8, 8)
    together = basis.of(images)
    torch.testing.assert_close(basis.of(images[2:3]), together[2:3], atol=1e-6, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(basis.of(images), together, atol=0, rtol=0)


def test_substructure_stands_out_of_smooth_lenses() -> None:
    simulator = Simulator(SimConfig(family="model_ii"))
    batch = simulator.batch(1, torch.arange(900))
    images, plain = batch["image"], batch["label"] == simulator.labels.index("no_sub")
    basis = principal(images[plain][:250], 60)
    power = (images - basis.of(images)).square().mean((1, 2, 3))
    assert power[~plain].median() > 5 * power[plain][250:].median()


def test_the_basis_of_a_packed_set(tiny_set: Path) -> None:
    packed = PackedSet(tiny_set)
    cfg = PreprocessConfig(scale="residual", components=20)
    some = fit_smooth(packed, cfg.model_copy(update={"smooth_class": "no_sub"}))
    assert len(some.rows) == 20
    of_all = fit_smooth(packed, cfg)
    assert isinstance(of_all, Smooth)
    images = packed.gather(packed.indices("train"))["image"]
    rms = (images - of_all.of(images)).square().mean().sqrt()
    assert of_all.scale == pytest.approx(float(rms))


def test_the_basis_is_of_one_class_and_the_unit_of_all_training_images(tiny_set: Path) -> None:
    packed = PackedSet(tiny_set)
    cfg = PreprocessConfig(scale="residual", components=4, smooth_class="cdm")
    found = fit_smooth(packed, cfg)
    assert isinstance(found, Smooth)
    train = packed.indices("train")
    chosen = train[packed.labels[train] == packed.manifest.labels.index("cdm")]
    wanted = principal(packed.gather(chosen)["image"], 4)
    assert torch.equal(found.mean, wanted.mean)
    assert torch.equal(found.rows, wanted.rows)
    images = packed.gather(train)["image"]
    rms = (images - wanted.of(images)).square().mean().sqrt()
    assert found.scale == pytest.approx(float(rms))


def test_of_many_images_some_make_the_basis_at_equal_distances() -> None:
    assert smooth._some(np.arange(25), 10).tolist() == [0, 3, 6, 9, 12, 15, 18, 21, 24]
    assert smooth._some(np.arange(10), 10).tolist() == list(range(10))


def test_a_class_that_is_not_there_is_named(tiny_set: Path) -> None:
    with pytest.raises(UserError, match=r"preprocess\.smooth_class.*'nosub'.*no_sub"):
        fit_smooth(PackedSet(tiny_set), PreprocessConfig(scale="residual", smooth_class="nosub"))


def test_residual_scaling_and_its_inverse(basis: Smooth) -> None:
    basis.scale = 0.5
    scale = Preprocess(PreprocessConfig(scale="residual", softening=1.0), [0.0], [1.0], basis)
    raw = torch.randn(4, 1, 8, 8)
    seen = scale(raw)
    torch.testing.assert_close(seen, torch.asinh((raw - basis.of(raw)) / 0.5))
    torch.testing.assert_close(scale.inverse(seen, raw), raw, atol=1e-5, rtol=0)
    left = ((raw - basis.of(raw)) / 0.5).flatten(1).std(1, correction=0)
    torch.testing.assert_close(scale.examine(raw).columns["residual"], left)
    again = Preprocess.from_state(scale.state(), scale.tensors())
    assert torch.equal(again(raw), seen)


def test_a_bad_pixel_reaches_nothing(basis: Smooth) -> None:
    scale = Preprocess(PreprocessConfig(scale="residual"), [0.0], [1.0], basis)
    raw, good = torch.randn(2, 1, 8, 8), torch.ones(2, 1, 8, 8, dtype=torch.bool)
    good[0, 0, 3, 4] = False
    hot = raw.clone()
    hot[0, 0, 3, 4] = 1e6
    assert torch.equal(scale(hot, good), scale(raw, good))
    assert scale(raw, good)[0, 0, 3, 4] == 0
