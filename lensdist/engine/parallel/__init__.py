"""Engines: how the processes of a run share a network."""

from __future__ import annotations

import warnings

from lensdist.config.schema import BaseRun
from lensdist.engine.batches import StepPlan
from lensdist.engine.parallel.base import Build, Engine
from lensdist.engine.world import DistributedContext


def build_engine(cfg: BaseRun, world: DistributedContext, plan: StepPlan, build: Build) -> Engine:
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
        from lensdist.engine.parallel.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(cfg, world, plan, build)
    if cfg.engine == "deepspeed":
        from lensdist.engine.parallel.zero import Zero

        return Zero(cfg, world, plan, build)
    from lensdist.engine.parallel.ddp import DataParallel

    return DataParallel(cfg, world, plan, build)
