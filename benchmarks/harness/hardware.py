"""Describe the machine: its name, its load, and the peak rates of products and copies, measured."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

_TYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}


def product_flops(device: torch.device, precision: str, tries: int = 8) -> float:
    """Return the FLOP/s of a square matrix product, the best of some tries.

    The type is that of the run's `precision`: under `no` float32 without TF32, under fp8 bfloat16,
    in which most of such a run is computed. A CPU uses as many threads as torch has.
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
    """Return the bytes/s of a copy larger than any cache, the best of some tries."""
    floats = 2**28 if device.type == "cuda" else 2**25
    a = torch.rand(floats, device=device)
    b = torch.empty_like(a)
    return 2 * a.nbytes / _best(lambda: b.copy_(a), device, tries)


def _best(work: Callable[[], object], device: torch.device, tries: int) -> float:
    """Return seconds; the first try, which chooses kernels and allocates memory, does not count."""
    return min([seconds(work, device) for _ in range(tries + 1)][1:])


def forget_peak(device: torch.device) -> None:
    """Reset the peak that `peak_bytes` returns; on a GPU only."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> tuple[int, str]:
    """Return the most memory in use, and its kind: a GPU's tensors, or this process's pages."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "tensors on the GPU"
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, "pages of the process since its start, including torch"


def describe(device: torch.device) -> str:
    """Return the device's name, or the number of torch's threads on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} thread(s) of a CPU"


def machine(device: torch.device) -> dict[str, Any]:
    """Return the facts of the machine needed to judge a figure; `load` is the one before."""
    facts = {"device": describe(device), "cores": os.cpu_count(), "torch": torch.__version__}
    return {**facts, "load": (load(), None)}


def load() -> float | None:
    """Return the number of runnable processes over the last minute; None if it is not counted."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def wait(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the wall-clock time of some work, until the device has done it."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start
