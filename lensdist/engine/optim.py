"""Optimizer, learning rate and weight average, all keyed by parameter name or by step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lensdist.engine.config import OptimConfig, ScheduleConfig


def build_optimizer(model: nn.Module, cfg: OptimConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over the parameters that train; biases and norms do not decay."""
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
    """The optimizer's tensors as `<parameter name>/<slot>`.

    By name, never by index: with index keys, state is silently given to other parameters when
    groups change.
    """
    return {
        f"{name}/{slot}": value
        for name, p in model.named_parameters()
        for slot, value in optimizer.state.get(p, {}).items()
    }


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]
) -> None:
    """Give the saved tensors to the parameters that this optimizer trains."""
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, value in saved.items():
        name, _, slot = key.rpartition("/")
        by_parameter.setdefault(name, {})[slot] = value
    mine = {p for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        if p in mine and name in by_parameter:
            optimizer.state[p] = {
                slot: _as_laid_out(value, p) for slot, value in by_parameter[name].items()
            }


def _as_laid_out(value: Tensor, p: nn.Parameter) -> Tensor:
    """A copy beside the parameter, element for element: fused Adam walks through memory."""
    if value.shape != p.shape:  # the step count
        return value.to(p.device, copy=True)
    return torch.empty_like(p, dtype=value.dtype, requires_grad=False).copy_(value)


def learning_rate(cfg: ScheduleConfig, step: int, steps: int, steps_per_epoch: int) -> float:
    """The learning rate of optimizer step `step` (from 0) of `steps`, as a share of the peak.

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
    """Exponential moving average of a model's weights (Polyak & Juditsky 1992).

    The decay rises to its value as (1 + n) / (10 + n) over the first updates, so that the first
    weights are soon forgotten. Buffers are copied.

    Args:
        model: a network of its own, which holds the average.
        decay: of the average, once warmed up.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model.requires_grad_(False).eval()
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """After the `updates`-th optimizer step."""
        weight = 1 - min(self._decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), weight)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
