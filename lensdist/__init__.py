"""lensdist: train models on strong-gravitational-lensing images, from a laptop to a cluster.

Importing this package imports no torch; the names below load what they need when used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lensdist import sim
    from lensdist.export.model import LoadedModel, load

__version__ = "0.1.0"
__all__ = ["LoadedModel", "__version__", "load", "sim"]


def __getattr__(name: str) -> Any:
    if name == "sim":
        return import_module("lensdist.sim")
    if name in ("load", "LoadedModel"):
        return getattr(import_module("lensdist.export.model"), name)
    raise AttributeError(f"module 'lensdist' has no attribute {name!r}")
