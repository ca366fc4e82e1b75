"""Optimizer, learning rate and weight average, all keyed by parameter name or by step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from lensdist.distributed.config import OptimConfig, ScheduleConfig
from lensdist.utils.stored import Value

V = TypeVar("V", bound=Value)


def build_optimizer(model: nn.Module, cfg: OptimConfig) -> torch.optim.Optimizer:
    """Return Adam or AdamW for the parameters that train; biases and norms do not decay."""
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for p in model.parameters():
        if p.requires_grad:
            (decay if p.dim() > 1 else plain).append(p)
    groups = [
        {"params": decay, "weight_decay": cfg.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    kind = torch.optim.Adam if cfg.name == "adam" else torch.optim.AdamW
    # Fused and unfused Adam differ in the last bits: always the same one on every device.
    return kind([g for g in groups if g["params"]], lr=cfg.lr, betas=cfg.betas, fused=True)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors as `<parameter name>/<slot>`.

    Keys are names, never indices: with indices, state is silently given to other parameters when
    groups change.
    """
    return {
        f"{name}/{slot}": value
        for name, p in model.named_parameters()
        for slot, value in optimizer.state.get(p, {}).items()
    }


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]
) -> None:
    """Load saved tensors for the parameters that this optimizer trains."""
    for p, slots in state_by_parameter(model, saved).items():
        optimizer.state[p] = {slot: as_laid_out(value, p) for slot, value in slots.items()}


def state_by_parameter(
    model: nn.Module, saved: Mapping[str, V]
) -> dict[nn.Parameter, dict[str, V]]:
    """Return the tensors saved as `<parameter name>/<slot>`, for the parameters that train."""
    by_name: dict[str, dict[str, V]] = {}
    for key, value in saved.items():
        name, _, slot = key.rpartition("/")
        by_name.setdefault(name, {})[slot] = value
    named = model.named_parameters()
    return {p: by_name[name] for name, p in named if p.requires_grad and name in by_name}


def as_laid_out(value: Tensor, p: nn.Parameter) -> Tensor:
    """Return a copy in the parameter's memory layout, which fused Adam needs."""
    if value.shape != p.shape:  # the step count
        return value.to(p.device, copy=True)
    return torch.empty_like(p, dtype=value.dtype, requires_grad=False).copy_(value)


def learning_rate(cfg: ScheduleConfig, step: int, steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate of optimizer step `step` (from 0) of `steps`, as a part of the peak.

    A pure function, so that a resumed run has no scheduler to restore. Cosine is SGDR's without
    restarts (Loshchilov & Hutter 2017, arXiv:1608.03983); `step` is torch's StepLR.
    """
    if step < cfg.warmup_steps:
        return (step + 1) / cfg.warmup_steps
    if cfg.kind == "cosine":
        progress = (step - cfg.warmup_steps) / max(1, steps - cfg.warmup_steps)
        return cfg.final + (1 - cfg.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if cfg.kind == "step":
        return float(cfg.gamma ** int(step // (cfg.step_epochs * steps_per_epoch)))
    return 1.0


class WeightAverage:
    """The exponential moving average of a network's weights (Polyak & Juditsky 1992).

    The decay rises to its value as (1 + n) / (10 + n) over the first updates, so that the first
    weights soon have no effect.

    Args:
        decay: of the average, once warmed up.
        shards: what to begin with, by the parameters' names: all of them, or a process's share.
    """

    def __init__(self, decay: float, shards: dict[str, Tensor]) -> None:
        self.shards = {name: shard.detach().clone() for name, shard in shards.items()}
        self._decay = decay

    @torch.no_grad()
    def update(self, shards: dict[str, Tensor], updates: int) -> None:
        """Update the average after the `updates`-th optimizer step."""
        weight = 1 - min(self._decay, (1 + updates) / (10 + updates))
        mine, theirs = list(self.shards.values()), [shards[name] for name in self.shards]
        torch._foreach_lerp_(mine, theirs, weight)

    @torch.no_grad()
    def swap(self, shards: dict[str, Tensor]) -> None:
        """Exchange the average with the weights, exactly; a second call restores both."""
        for name, mine in self.shards.items():
            theirs = shards[name]
            kept = theirs.clone()
            theirs.copy_(mine)
            mine.copy_(kept)
