"""Stages of a run: what trains when, and what that changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lensdist.config.schema import BaseRun
from lensdist.data.sampler import Images, Source
from lensdist.engine.batches import StepPlan
from lensdist.engine.batchnorm import RunningStatistics, synchronise
from lensdist.engine.feature_cache import cached
from lensdist.engine.parallel.base import Engine
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
    weighted: bool = False
    """Whether some pixels of the data count less than others."""


@dataclass(frozen=True)
class StageSteps:
    """A stage in optimizer steps, `start` to before `end`."""

    stage: Stage
    start: int
    end: int


@dataclass(frozen=True)
class Entered:
    """What depends on which parameters train, besides the engine."""

    stage: StageSteps
    source: Source
    """Images, or what the frozen part of the network makes of them."""
    kept: str
    """Whether that is so, in words."""
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


def enter(
    stage: StageSteps, engine: Engine, phase: Phase, world: World, tensors: Mapping[str, Tensor]
) -> Entered:
    """Freeze, wrap, and build what depends on which parameters train.

    Args:
        stage: which.
        engine: holds the network.
        phase: what is trained.
        world: the processes.
        tensors: the state to go on from, by the names of a checkpoint; empty at the start.
    """
    engine.freeze(stage.stage.trains, tensors)
    called, source, kept = engine.bare, phase.source, ""
    if engine.replicated:  # a share of a network cannot be called in part
        called, source, kept = _without_frozen(stage, engine.bare, phase, world)
    count = phase.plan.count
    if phase.cfg.train.sync_batchnorm:
        synchronise(engine.bare, world.size)
        count = 1  # as if the step were one micro-batch
    engine.wrap(called, tensors)
    statistics = RunningStatistics(engine.bare, world, count)
    return Entered(stage, source, kept, statistics)


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
