"""Stages of a run: which parameters train when, and what depends on it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lensdist.data.sampler import Images, Source
from lensdist.distributed.batchnorm import RunningStatistics, synchronise
from lensdist.distributed.config import ScheduleConfig, TrainConfig
from lensdist.distributed.context import DistributedContext
from lensdist.distributed.micro_batches import StepPlan
from lensdist.distributed.strategies.base import ParallelStrategy
from lensdist.tasks.registry import AnyTask
from lensdist.tasks.types import Stage
from lensdist.training.feature_cache import cached
from lensdist.utils.stored import Value

if TYPE_CHECKING:
    from lensdist.config.schema import BaseRun


@dataclass(frozen=True)
class Phase:
    """A training phase: its task, its data and its settings."""

    cfg: BaseRun
    task: AnyTask
    source: Source
    validation: Images
    plan: StepPlan
    facts: dict[str, Any]
    """Values for every checkpoint: the configuration, and hashes of the data and the weights."""
    peak_images_per_s: Callable[[nn.Module], float | None] = lambda network: None
    """Returns the run's images per second at the devices' peak speed, or None if unknown."""
    weighted: bool = False
    """Whether some pixels of the data count less than others."""

    @cached_property
    def meta_network(self) -> nn.Module:
        """The network on the meta device: shapes without values, cheap in time and memory."""
        # torch warns about each weight of a checkpoint that a meta parameter does not take.
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            return self.task.build()


@dataclass(frozen=True)
class StageSteps:
    """A stage in optimizer steps, from `start` up to but not including `end`."""

    stage: Stage
    start: int
    end: int


@dataclass(frozen=True)
class Entered:
    """The objects of a stage, besides the strategy, that depend on which parameters train."""

    stage: StageSteps
    source: Source
    """Images, or the outputs of the network's frozen part for them."""
    kept: str
    """A sentence on whether the frozen part's outputs are cached; empty if there was no choice."""
    statistics: RunningStatistics


def stages_in_steps(task: AnyTask, train: TrainConfig, steps_per_epoch: int) -> list[StageSteps]:
    """Return a run's stages in optimizer steps, up to `max_steps` if that is set."""
    limit = train.max_steps
    stages: list[StageSteps] = []
    start = 0
    for stage in task.stages(train.epochs):
        end = start + stage.epochs * steps_per_epoch
        if limit is not None:
            end = min(end, limit)
        if end > start:
            stages.append(StageSteps(stage, start, end))
        start = end
    if limit is not None and start < limit:  # more steps than epochs: the last stage continues
        stages[-1] = StageSteps(stages[-1].stage, stages[-1].start, limit)
    return stages


def check_warmup(schedule: ScheduleConfig, stages: Sequence[StageSteps]) -> None:
    """Check that the warm-up ends within the run or, if each stage has its own, within each.

    Raises:
        UserError: it does not.
    """
    if not schedule.per_stage:
        schedule.check_warmup(stages[-1].end)
        return
    for number, stage in enumerate(stages, start=1):
        schedule.check_warmup(stage.end - stage.start, f"stage {number} of {len(stages)}")


def enter(
    stage: StageSteps,
    strategy: ParallelStrategy,
    phase: Phase,
    world: DistributedContext,
    tensors: Mapping[str, Value],
) -> Entered:
    """Freeze and wrap the network, and build what depends on which parameters train.

    Args:
        stage: the stage that begins.
        strategy: holds the network.
        phase: the phase to train.
        world: the processes.
        tensors: the state to continue from, by the names of a checkpoint; empty at the start.
    """
    strategy.freeze(stage.stage.trains, tensors)
    called, source, kept = strategy.unwrapped, phase.source, ""
    if strategy.replicated:  # a shard of a network cannot be called in part
        called, source, kept = _without_frozen(stage, strategy.unwrapped, phase, world)
    count = phase.plan.count
    if phase.cfg.train.sync_batchnorm:
        synchronise(strategy.unwrapped, world.size)
        count = 1  # as if the step were one micro-batch
    strategy.wrap(called, tensors)
    statistics = RunningStatistics(strategy.unwrapped, world, count)
    return Entered(stage, source, kept, statistics)


def _without_frozen(
    stage: StageSteps, bare: nn.Module, phase: Phase, world: DistributedContext
) -> tuple[nn.Module, Source, str]:
    """Return the network to call at each step, its source, and a sentence on the cache."""
    split = phase.task.split(bare, stage.stage.trains)
    if split is None:
        return bare, phase.source, ""
    cfg = phase.cfg
    source, kept = cached(
        phase.task,
        split.trunk,
        phase.source,
        stage.stage.epochs,
        world,
        augment=cfg.augment,
        seed=cfg.seed,
        batch=cfg.train.eval_batch,
        max_gb=cfg.cache.max_gb,
    )
    return (bare if source is phase.source else split.rest), source, kept
