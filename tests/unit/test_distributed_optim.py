"""Schedules, weight averages and learning state, against torch's own and plain loops."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lensdist.distributed.config import OptimConfig, ScheduleConfig
from lensdist.distributed.optim import (
    WeightAverage,
    build_optimizer,
    learning_rate,
    load_optimizer_state,
    optimizer_state,
)

pytestmark = pytest.mark.unit


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def torch_rates(scheduler: str, steps: int, **options: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    made = getattr(torch.optim.lr_scheduler, scheduler)(optimizer, **options)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return rates


def test_cosine_is_torchs() -> None:
    cfg = ScheduleConfig(kind="cosine", final=0.1)
    ours = [learning_rate(cfg, step, 50, 10) for step in range(50)]
    assert ours == pytest.approx(torch_rates("CosineAnnealingLR", 50, T_max=50, eta_min=0.1))


def test_step_is_torchs() -> None:
    cfg = ScheduleConfig(kind="step", step_epochs=3, gamma=0.5)
    ours = [learning_rate(cfg, step, 100, 7) for step in range(100)]
    by_epoch = torch_rates("StepLR", 15, step_size=3, gamma=0.5)
    assert ours == pytest.approx([by_epoch[step // 7] for step in range(100)])


def test_warm_up_is_linear_and_joins_the_curve() -> None:
    cfg = ScheduleConfig(kind="cosine", warmup_steps=10)
    rates = [learning_rate(cfg, step, 110, 10) for step in range(110)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[10:] == pytest.approx(torch_rates("CosineAnnealingLR", 100, T_max=100))


def test_a_constant_rate_stays() -> None:
    assert {learning_rate(ScheduleConfig(), step, 10, 3) for step in range(10)} == {1.0}


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_biases_and_norms_do_not_decay(name: str) -> None:
    model = net()
    cfg = OptimConfig(name=name, lr=0.01, weight_decay=0.5)  # type: ignore[arg-type]
    optimizer = build_optimizer(model, cfg)
    before = {k: v.clone() for k, v in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)  # so that what moves a weight is the decay
    optimizer.step()
    moved = {k for k, v in model.named_parameters() if not torch.equal(v, before[k])}
    assert moved == {"0.weight", "3.weight"}


def test_only_what_trains_is_given_to_the_optimizer() -> None:
    model = net()
    model[0].requires_grad_(False)
    optimizer = build_optimizer(model, OptimConfig())
    mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert mine == {id(p) for p in [*model[1].parameters(), *model[3].parameters()]}


def test_learning_state_goes_on_bit_for_bit_in_a_new_optimizer() -> None:
    model, cfg = net(), OptimConfig(lr=0.01)
    optimizer = build_optimizer(model, cfg)
    train(model, optimizer, 5)
    saved = {k: v.clone() for k, v in optimizer_state(model, optimizer).items()}
    twin = copy.deepcopy(model)
    again = build_optimizer(twin, cfg)
    load_optimizer_state(twin, again, saved)
    train(model, optimizer, 5, start=5)
    train(twin, again, 5, start=5)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_learning_state_follows_its_parameter_when_more_unfreeze() -> None:
    model = net()
    model[0].requires_grad_(False)
    head_only = build_optimizer(model, OptimConfig())
    train(model, head_only, 4)
    saved = optimizer_state(model, head_only)
    assert {name.rpartition("/")[0] for name in saved} == {
        "1.weight", "1.bias", "3.weight", "3.bias"
    }  # fmt: skip
    model.requires_grad_(True)
    everything = build_optimizer(model, OptimConfig())  # the head's indices are others now
    load_optimizer_state(model, everything, saved)
    now = optimizer_state(model, everything)
    assert now.keys() == saved.keys()
    assert all(torch.equal(now[k], saved[k]) for k in saved)
    train(model, everything, 1)
    assert float(everything.state[model[3].weight]["step"]) == 5
    assert float(everything.state[model[0].weight]["step"]) == 1


def test_loaded_state_is_a_copy_and_frozen_parameters_get_none() -> None:
    model = net()
    optimizer = build_optimizer(model, OptimConfig())
    train(model, optimizer, 2)
    saved = {k: v.clone() for k, v in optimizer_state(model, optimizer).items()}
    model[0].requires_grad_(False)
    fewer = build_optimizer(model, OptimConfig())
    load_optimizer_state(model, fewer, saved)
    assert model[0].weight not in fewer.state
    before = {k: v.clone() for k, v in saved.items()}
    train(model, fewer, 1)
    assert all(torch.equal(saved[k], v) for k, v in before.items())


def test_the_average_is_that_of_a_plain_loop() -> None:
    model, decay = net(), 0.9
    pieces = dict(model.named_parameters())
    average = WeightAverage(decay, pieces)
    optimizer = build_optimizer(model, OptimConfig(lr=0.05))
    expected = [p.detach().clone().double() for p in model.parameters()]
    for step in range(1, 120):
        train(model, optimizer, 1, start=step)
        average.update(pieces, step)
        d = min(decay, (1 + step) / (10 + step))
        expected = [
            d * e + (1 - d) * p.detach().double()
            for e, p in zip(expected, model.parameters(), strict=True)
        ]
    for mine, wanted in zip(average.shards.values(), expected, strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=1e-4, atol=1e-6)
    assert not any(mine.requires_grad for mine in average.shards.values())
