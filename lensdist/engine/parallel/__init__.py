"""Engines: how the processes of a run share a network."""

from __future__ import annotations

import warnings

from lensdist.config.schema import BaseRun
from lensdist.engine.batches import StepPlan
from lensdist.engine.parallel.base import Build, ParallelStrategy
from lensdist.engine.world import DistributedContext


def build_strategy(
    cfg: BaseRun, world: DistributedContext, plan: StepPlan, build: Build
) -> ParallelStrategy:
    """The engine that a run's configuration names.

    Args:
        cfg: the run's.
        world: the processes.
        plan: what each computes of a step.
        build: makes the network.
    """
    if cfg.engine != "ddp":
        # torch tells its own FSDP2 and DeepSpeed, at each call, of names that torch 2.11 has not.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if cfg.engine == "fsdp":
        from lensdist.engine.parallel.fsdp import FSDPStrategy

        return FSDPStrategy(cfg, world, plan, build)
    if cfg.engine == "deepspeed":
        from lensdist.engine.parallel.zero import DeepSpeedStrategy

        return DeepSpeedStrategy(cfg, world, plan, build)
    from lensdist.engine.parallel.ddp import DDPStrategy

    return DDPStrategy(cfg, world, plan, build)
