"""torch's own switches, set once."""

from __future__ import annotations

import os

import torch

from lensdist.config.schema import BaseRun


def set_determinism(cfg: BaseRun, device: torch.device) -> None:
    """Determinism, and TF32 for matrix products where precision allows it."""
    if device.type != "cuda":
        return
    if cfg.train.deterministic:
        # Read when cuBLAS starts, so it must be set before the first product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Else every `torch.empty` is filled with NaN, to show who reads it: a kernel a buffer.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
    else:
        torch.use_deterministic_algorithms(False)  # an earlier run of this process may have wished
        torch.backends.cudnn.benchmark = True
    exact = cfg.precision == "no"  # it means float32, all of it
    torch.set_float32_matmul_precision("highest" if exact else "high")
    torch.backends.cudnn.allow_tf32 = not exact  # convolutions; on where nobody says anything
