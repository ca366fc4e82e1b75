"""How fast this CPU is, and a word before a run that takes long on it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

import lensdist
from lensdist.config.schema import BaseRun
from lensdist.engine import checkpoint
from lensdist.engine.world import DistributedContext
from lensdist.errors import say
from lensdist.estimate.duration import LONG, operations, warning

_SLOW = 1e10  # operations a second that any CPU does
_SIZE = 768  # rows of a product: 2 ms or more


def announce(cfg: BaseRun, world: DistributedContext) -> None:
    """Say on the main process, before a run on CPUs that takes more than an hour, how long it
    takes, and which preset takes less."""
    if not world.main or world.device.type != "cpu":
        return
    done = max((step for step, _ in checkpoint.steps(cfg.run.dir / "checkpoints")), default=0)
    if (operations(cfg, done) or 0) < LONG * _SLOW:
        return
    presets = Path(lensdist.__file__).parents[1] / "configs" / cfg.task
    if presets.is_relative_to(Path.cwd()):
        presets = presets.relative_to(Path.cwd())
    sentence = warning(cfg, _rate(cfg.precision) * _at_once(world.size), done, presets)
    if sentence:
        say(sentence)


def _rate(precision: str) -> float:
    """Operations a second of this process's matrix products; takes a tenth of a second."""
    a = torch.ones(_SIZE, _SIZE, dtype=torch.float32 if precision == "no" else torch.bfloat16)
    best, end = float("inf"), time.perf_counter() + 0.1
    while time.perf_counter() < end or best == float("inf"):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2 * _SIZE**3 / best


def _at_once(processes: int) -> float:
    """How many times as much all processes do: cores that they share are no more for it."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(local, max(1.0, (cores or 1) / torch.get_num_threads())) * processes / local
