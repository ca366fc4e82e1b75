"""What this machine can do at best: matrix products and copies, measured for seconds only."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable

import torch

from lensdist.config.schema import BaseRun

_TYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}


def product_flops(device: torch.device, precision: str, tries: int = 8) -> float:
    """FLOP/s of a square matrix product, the best of some tries.

    In the type of the run's `precision`: under `no` float32 without TF32, under fp8 bfloat16, which
    is what most of such a run computes in. A CPU's is that of as many threads as torch has.
    """
    size = 8192 if device.type == "cuda" else 1024
    a = torch.rand(size, size, device=device).to(_TYPES[precision])
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return float(2 * size**3 / _best(lambda: a @ a, device, tries))
    finally:
        torch.set_float32_matmul_precision(before)


def copy_bytes(device: torch.device, tries: int = 8) -> float:
    """Bytes/s read and written by a copy larger than any cache, the best of some tries."""
    floats = 2**28 if device.type == "cuda" else 2**25
    a = torch.rand(floats, device=device)
    b = torch.empty_like(a)
    return 2 * a.nbytes / _best(lambda: b.copy_(a), device, tries)


def _best(work: Callable[[], object], device: torch.device, tries: int) -> float:
    """Seconds; the first try, which chooses kernels and fetches memory, does not count."""
    seconds = []
    for _ in range(tries + 1):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def forget_peak(device: torch.device) -> None:
    """What follows is what `peak_bytes` tells of; on a GPU only."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> tuple[int, str]:
    """The most memory that was in use, and whose: a GPU's tensors, or this process's pages."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "tensors on the GPU"
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, "pages of the process since it began, torch itself included"


def describe(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} thread(s) of a CPU"


def load() -> float | None:
    """Processes that want a core, over the last minute; None where nobody counts them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def train_bytes(cfg: BaseRun) -> tuple[float | None, str]:
    """Bytes of memory traffic an image in training, or None and why not."""
    try:
        from lensdist.estimate import train_bytes as counted
    except ImportError:
        return None, "this build has no estimate of memory traffic"
    found = counted(cfg)
    return found, "" if found is not None else "a network of this run is in no table"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
