"""lensdist: train models on strong-gravitational-lensing images, from a laptop to a cluster.

Importing this package imports no torch; the names below load what they need when used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lensdist import sim
    from lensdist.api import Model, Run, load, read_runs, train

__version__ = "0.1.0"
__all__ = ["Model", "Run", "__version__", "load", "read_runs", "sim", "train"]


def __getattr__(name: str) -> Any:
    if name in ("sim", "train"):  # the module `train` can be called
        return import_module(f"lensdist.{name}")
    if name in __all__:
        return getattr(import_module("lensdist.api"), name)
    raise AttributeError(f"module 'lensdist' has no attribute {name!r}")
