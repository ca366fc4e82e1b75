"""Compare a run with its devices' speed: warn before long runs, and return the peak speed."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from lensdist.config.presets import FOLDER
from lensdist.config.schema import BaseRun
from lensdist.distributed.context import DistributedContext
from lensdist.estimate.duration import LONG, operations, warning
from lensdist.estimate.hardware import GPUS
from lensdist.estimate.network import network_of
from lensdist.training import checkpoint
from lensdist.utils.errors import UserError

log = logging.getLogger(__name__)

_SLOW = 1e10  # operations per second that any CPU reaches
_SIZE = 768  # rows of a matrix; a product takes 2 ms or more
_PEAKS = {"no": "fp32_tflops", "fp16": "fp16_tflops"}  # others: bfloat16's


def announce(cfg: BaseRun, world: DistributedContext) -> None:
    """Warn before a run on CPUs that takes more than an hour, and name a preset that takes less."""
    if not world.main or world.device.type != "cpu":
        return
    done = max((step for step, _ in checkpoint.steps(cfg.run.dir / "checkpoints")), default=0)
    if (operations(cfg, done) or 0) < LONG * _SLOW:
        return
    presets = (FOLDER / cfg.task).resolve()
    if presets.is_relative_to(Path.cwd()):
        presets = presets.relative_to(Path.cwd())
    sentence = warning(cfg, _rate(cfg.precision) * _at_once(world.size), done, presets)
    if sentence:
        log.warning(sentence)


def peak_images_per_s(cfg: BaseRun, world: DistributedContext, network: nn.Module) -> float | None:
    """Return the run's images per second if all its devices compute at their peak.

    A backward pass takes twice the operations of a forward pass. Operations that `speed.recompute`
    repeats do not count. Float8 products count at the peak of bfloat16.

    Returns:
        None if the peak of the device or the operations of the network are unknown, or if a part of
        the network is frozen.
    """
    if world.device.type != "cuda" or not all(p.requires_grad for p in network.parameters()):
        return None
    peak = peak_flops(torch.cuda.get_device_name(world.device), cfg.precision)
    if peak is not None:
        with suppress(UserError):  # a network that cannot be traced
            return world.size * peak / (3 * network_of(cfg).flops)
    return None


def peak_flops(name: str, precision: str) -> float | None:
    """Return a GPU's peak operations per second, from its data sheet.

    `name` is the GPU's in torch, such as `NVIDIA H100 80GB HBM3`. Return None if it is not known:
    PCIe cards are slower than the SXM modules of the data sheets, except the A100, and a MIG slice
    is a part of a GPU.
    """
    words = set(name.replace("-", " ").upper().split())
    if "MIG" in words or (words & {"PCIE", "NVL"} and "A100" not in words):
        return None
    sheet = next((gpu for key, gpu in GPUS.items() if key.split("-")[0] in words), None)
    if sheet is None:
        return None
    return 1e12 * float(getattr(sheet, _PEAKS.get(precision, "bf16_tflops")))


def _rate(precision: str) -> float:
    """Measure the operations per second of this process's matrix products, for 0.1 s."""
    a = torch.ones(_SIZE, _SIZE, dtype=torch.float32 if precision == "no" else torch.bfloat16)
    best, end = float("inf"), time.perf_counter() + 0.1
    while time.perf_counter() < end or best == float("inf"):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2 * _SIZE**3 / best


def _at_once(processes: int) -> float:
    """Return the work of all processes in units of one process's; those on one core share it."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(local, max(1.0, (cores or 1) / torch.get_num_threads())) * processes / local
