"""What depends on which parameters train: the called model, its optimizer, its gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lensdist.config.schema import BaseRun
from lensdist.data.source import Images, Source
from lensdist.engine.batches import StepPlan
from lensdist.engine.batchnorm import RunningStatistics
from lensdist.engine.feature_cache import cached
from lensdist.engine.gradients import Averaged, FixedOrder
from lensdist.engine.optim import build_optimizer
from lensdist.engine.world import World
from lensdist.tasks.base import Splittable, Stage, Task


@dataclass(frozen=True)
class Phase:
    """What is trained, on what, and how."""

    cfg: BaseRun
    task: Task
    source: Source
    validation: Images
    plan: StepPlan
    facts: dict[str, Any]
    """Written into every checkpoint: the configuration, and what names the data."""


@dataclass(frozen=True)
class StageSteps:
    """A stage in optimizer steps, `start` to before `end`."""

    stage: Stage
    start: int
    end: int


@dataclass(frozen=True)
class Entered:
    """What depends on which parameters train."""

    stage: StageSteps
    model: nn.Module
    """Wrapped for this stage: what is called in training."""
    source: Source
    """Images, or what the frozen part of the network makes of them."""
    kept: str
    """Whether that is so, in words."""
    optimizer: torch.optim.Optimizer
    stepper: torch.optim.Optimizer
    """The optimizer as it is stepped: under fp16, through accelerate's scaler."""
    gradients: Averaged | FixedOrder
    statistics: RunningStatistics


def stages_in_steps(task: Task, cfg: BaseRun, steps_per_epoch: int) -> list[StageSteps]:
    limit = cfg.train.max_steps
    stages: list[StageSteps] = []
    start = 0
    for stage in task.stages(cfg.train.epochs):
        end = start + stage.epochs * steps_per_epoch
        if limit is not None:
            end = min(end, limit)
        if end > start:
            stages.append(StageSteps(stage, start, end))
        start = end
    if limit is not None and start < limit:  # more steps than epochs: the last stage goes on
        stages[-1] = StageSteps(stages[-1].stage, stages[-1].start, limit)
    return stages


def enter(stage: StageSteps, bare: nn.Module, phase: Phase, world: World) -> Entered:
    """Freeze, wrap, and build what depends on which parameters train.

    DDP decides at wrapping which gradients it reduces: a parameter that is unfrozen afterwards
    trains on every process by itself, without a word. So each stage wraps anew.
    """
    cfg, plan = phase.cfg, phase.plan
    world.unwrap(bare)
    for name, parameter in bare.named_parameters():
        parameter.requires_grad_(stage.stage.trains(name))
        parameter.grad = None
    bare.train()
    for module in bare.modules():  # frozen parts behave as they will in use: no dropout, no drift
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()
    called, source, kept = _without_frozen(stage, bare, phase, world)
    model = world.wrap(called, ddp=not cfg.train.reproducible)
    optimizer = stepper = build_optimizer(bare, cfg.optim)
    if world.accelerator.scaler is not None:
        # Only then: accelerate's wrapper looks for packages on the disk at each step, 0.25 ms.
        stepper = world.accelerator.prepare_optimizer(optimizer, device_placement=False)
    gradients = FixedOrder if cfg.train.reproducible else Averaged
    return Entered(
        stage,
        model,
        source,
        kept,
        optimizer,
        stepper,
        gradients(model, world, plan),
        RunningStatistics(bare, world, plan.count),
    )


def _without_frozen(
    stage: StageSteps, bare: nn.Module, phase: Phase, world: World
) -> tuple[nn.Module, Source, str]:
    """What to call at each step and on what: without the frozen part, where its outputs fit."""
    if not isinstance(phase.task, Splittable):
        return bare, phase.source, ""
    split = phase.task.split(bare, stage.stage.trains)
    if split is None:
        return bare, phase.source, ""
    source, kept = cached(
        phase.task, split.trunk, phase.source, stage.stage.epochs, phase.cfg, world
    )
    return (bare if source is phase.source else split.rest), source, kept
