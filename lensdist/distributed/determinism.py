"""Set torch's switches for determinism and precision."""

from __future__ import annotations

import os

import torch


def set_determinism(device: torch.device, *, deterministic: bool, precision: str) -> None:
    """Set torch's deterministic algorithms, and TF32 if the precision allows it (GPUs only)."""
    if device.type != "cuda":
        return
    if deterministic:
        # cuBLAS reads it when it starts, so it must be set before the first product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Otherwise torch fills every `torch.empty` with NaN, to show who reads it: a kernel per
        # buffer.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
    else:
        torch.use_deterministic_algorithms(False)  # an earlier run of this process may have set it
        torch.backends.cudnn.benchmark = True
    exact = precision == "no"  # the setting means float32 throughout
    torch.set_float32_matmul_precision("highest" if exact else "high")
    torch.backends.cudnn.allow_tf32 = not exact  # for convolutions, torch's default is on
