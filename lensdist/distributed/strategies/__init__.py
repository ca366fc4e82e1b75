"""Parallel strategies: how the processes of a run share a network."""

from __future__ import annotations

import warnings

from lensdist.distributed.context import DistributedContext
from lensdist.distributed.micro_batches import StepPlan
from lensdist.distributed.strategies.base import Build, ParallelStrategy, StrategySettings

__all__ = ["ParallelStrategy", "StrategySettings", "build_strategy"]


def build_strategy(
    engine: str,
    settings: StrategySettings,
    world: DistributedContext,
    plan: StepPlan,
    build: Build,
) -> ParallelStrategy:
    """Return the strategy of an engine.

    Args:
        engine: `ddp`, `fsdp` or `deepspeed`.
        settings: of the run.
        world: the processes.
        plan: the micro-batches of a step.
        build: builds the network.
    """
    if engine != "ddp":
        # torch 2.11 deprecated names that its own FSDP2 and DeepSpeed use at each call.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if engine == "fsdp":
        from lensdist.distributed.strategies.fsdp import FSDPStrategy

        return FSDPStrategy(settings, world, plan, build)
    if engine == "deepspeed":
        from lensdist.distributed.strategies.zero import DeepSpeedStrategy

        return DeepSpeedStrategy(settings, world, plan, build)
    from lensdist.distributed.strategies.ddp import DDPStrategy

    return DDPStrategy(settings, world, plan, build)
