"""How a step is shared out, how gradients and BatchNorm statistics come together again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from lensdist.config import load
from lensdist.config.differences import differences
from lensdist.config.schema import schema_of
from lensdist.distributed.batchnorm import RunningStatistics
from lensdist.distributed.gradients import Averaged, FixedOrder
from lensdist.distributed.micro_batches import check_shares, plan_steps
from lensdist.utils.errors import UserError
from tests.conftest import ROOT
from tests.runs import TASKS
from tests.unit.worlds import FakeWorld, on_all, seeded

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_processes_share_the_same_micro_batches(size: int) -> None:
    plans = [plan_steps(32, 4, 100, rank, size) for rank in range(size)]
    assert [micro for plan in plans for micro in plan.mine] == list(range(8))
    assert {plan.steps_per_epoch for plan in plans} == {3}
    places = [plan.place(step, m) for step in range(6) for plan in plans for m in plan.mine]
    offsets = [[offset for e, offset in places if e == epoch] for epoch in (0, 1)]
    assert offsets[0] == offsets[1] == list(range(0, 96, 4))  # the short last batch is dropped


@pytest.mark.parametrize(
    ("batch", "micro", "samples", "size", "sentence"),
    [
        (12, 4, 100, 2, r"3 micro-batches of 4, which 2 processes.*train\.micro_batch to 6"),
        (7, 7, 100, 2, r"set train\.global_batch to 6 or 8, and train\.micro_batch to auto"),
        (16, "auto", 100, 3, r"16 cannot be shared evenly by 3.*global_batch to 15 or 18, or st"),
        (4, "auto", 100, 8, r"4 cannot be shared evenly by 8.*set train\.global_batch to 8, or"),
        (64, 8, 63, 1, "more than the 63 training images"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    batch: int, micro: int | Literal["auto"], samples: int, size: int, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        plan_steps(batch, micro, samples, 0, size)


PRESETS = sorted(p for task in TASKS for p in (ROOT / "configs" / task).glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_preset_runs_as_it_stands_on_1_2_4_and_8_processes(preset: Path) -> None:
    cfg = load(preset, schema=schema_of)
    batch = cfg.train.global_batch
    for size in (1, 2, 4, 8):
        check_shares(cfg.train, cfg.fewest, size)
        plans = [plan_steps(batch, cfg.train.micro_batch, batch, r, size) for r in range(size)]
        assert sum(len(plan.mine) * plan.micro_batch for plan in plans) == batch
        assert {plan.micro_batch for plan in plans} == {cfg.train.micro(size)}


@pytest.mark.parametrize(
    ("preset", "words", "size", "sentence"),
    [
        ("common/debug", [], 16, "needs 2 images or more; set train.global_batch to 32, or tr"),
        ("finetune/debug", ["model.head_norm=true"], 16, "needs 2 images or more"),
        ("mae/debug", ["train.reproducible=true"], 4, "set train.micro_batch to 4, or to a div"),
        ("mae/debug", [], 3, "set train.global_batch to 15 or 18"),
    ],
)
def test_what_auto_cannot_do_is_refused(
    preset: str, words: list[str], size: int, sentence: str
) -> None:
    cfg = load(ROOT / "configs" / f"{preset}.yaml", words, schema=schema_of)
    with pytest.raises(UserError, match=sentence):
        check_shares(cfg.train, cfg.fewest, size)


def test_synchronised_batchnorm_takes_one_image_a_process() -> None:
    words = ["train.sync_batchnorm=true"]
    more = [*words, "train.micro_batch=4"]
    cfg = load(ROOT / "configs" / "common" / "debug.yaml", words, schema=schema_of)
    check_shares(cfg.train, cfg.fewest, 16)
    with pytest.raises(UserError, match=r"sync_batchnorm .*micro_batch: auto, not 4"):
        load(ROOT / "configs" / "common" / "debug.yaml", more, schema=schema_of)


def test_configurations_from_before_auto_mean_the_same() -> None:
    debug = ROOT / "configs" / "mae" / "debug.yaml"
    old, new = (
        load(debug, ["train.micro_batch=null"], schema=schema_of),
        load(debug, schema=schema_of),
    )
    assert old == new
    assert differences(old.model_dump(mode="json"), new.model_dump(mode="json")) == []
    assert new.train.micro() == new.train.global_batch


# ---- gradients


def loss_of(model: nn.Module, micro: int) -> Tensor:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(micro))
    return model(x).square().mean()


def whole_gradient(count: int) -> Tensor:
    model = linear()
    torch.stack([loss_of(model, micro) for micro in range(count)]).mean().backward()
    assert model.weight.grad is not None
    return model.weight.grad


def linear() -> nn.Linear:
    with seeded(3):
        return nn.Linear(3, 2)


def gradient(world: Any, kind: Any) -> Tensor:
    model, plan = linear(), plan_steps(16, 4, 100, world.rank, world.size)
    gradients = kind(model, world, plan)
    for index, micro in enumerate(plan.mine):
        with gradients.micro_batch(index):
            gradients.backward(loss_of(model, micro))
    gradients.finish()
    assert model.weight.grad is not None
    return model.weight.grad


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_accumulate_to_the_gradient_of_the_mean_loss(size: int) -> None:
    each = on_all(size, lambda world: gradient(world, Averaged))
    torch.testing.assert_close(torch.stack(each).mean(0), whole_gradient(4))  # as DDP averages


def test_fixed_order_gives_the_same_bits_on_any_number_of_processes() -> None:
    alone = gradient(FakeWorld(), FixedOrder)
    torch.testing.assert_close(alone, whole_gradient(4))
    for size in (2, 4):
        for shared in on_all(size, lambda world: gradient(world, FixedOrder)):
            assert torch.equal(shared, alone)


def test_fixed_order_takes_parameters_without_a_gradient() -> None:
    model = nn.ModuleDict({"used": linear(), "unused": linear()})
    gradients = FixedOrder(model, FakeWorld(), plan_steps(8, 4, 100, 0, 1))  # type: ignore[arg-type]
    for micro in range(2):
        gradients.backward(loss_of(model["used"], micro))
    gradients.finish()
    assert torch.equal(model["unused"].weight.grad, torch.zeros(2, 3))


# ---- BatchNorm


def layer() -> nn.Module:
    with seeded(1):
        norm = nn.BatchNorm2d(3, momentum=0.3)
        norm.running_mean = torch.randn(3)
        return nn.Sequential(nn.Conv2d(1, 3, 3), norm)


def images(step: int, micro: int) -> Tensor:
    return torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(100 * step + micro))


def run_steps(world: Any, steps: int = 3) -> nn.Module:
    model, plan = layer(), plan_steps(16, 4, 100, world.rank, world.size)
    statistics = RunningStatistics(model, world, plan.count)
    for step in range(steps):
        statistics.begin()
        for micro in plan.mine:
            model(images(step, micro))
            statistics.collect()
        statistics.finish()
    return model


def test_statistics_move_once_a_step_by_the_mean_over_its_micro_batches() -> None:
    norm = run_steps(FakeWorld())[1]
    mean, var = layer()[1].running_mean.clone(), torch.ones(3)
    with torch.no_grad():
        for step in range(3):
            seen = [layer()[0](images(step, micro)) for micro in range(4)]
            means = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
            variances = torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)
            mean, var = 0.7 * mean + 0.3 * means, 0.7 * var + 0.3 * variances
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)
    assert int(norm.num_batches_tracked) == 3


def test_statistics_are_the_same_bits_on_any_number_of_processes() -> None:
    alone = run_steps(FakeWorld()).state_dict()
    for size in (2, 4):
        for model in on_all(size, run_steps):
            assert all(torch.equal(v, alone[k]) for k, v in model.state_dict().items())


def test_a_micro_batch_is_normalised_by_itself() -> None:
    model = layer()
    statistics = RunningStatistics(model, FakeWorld(), 2)  # type: ignore[arg-type]
    statistics.begin()
    first = model(images(0, 0))
    statistics.collect()
    torch.testing.assert_close(first.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    assert torch.equal(model[1].running_mean, layer()[1].running_mean)  # old until `finish`


def test_frozen_layers_and_single_micro_batches_are_left_to_torch() -> None:
    model = layer()
    model[1].eval()
    before = model[1].running_mean.clone()
    statistics = RunningStatistics(model, FakeWorld(), 2)  # type: ignore[arg-type]
    statistics.begin()
    model(images(0, 0))
    statistics.collect()
    statistics.finish()
    assert torch.equal(model[1].running_mean, before)

    ours, plain = layer(), layer()
    statistics = RunningStatistics(ours, FakeWorld(), 1)  # type: ignore[arg-type]
    statistics.begin()
    ours(images(0, 0))
    statistics.collect()
    statistics.finish()
    plain(images(0, 0))
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in ours.state_dict().items())
