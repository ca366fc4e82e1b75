"""Simulated strong lenses: families of images, their priors, optics and noise.

`render` draws given lenses, `sample` draws lenses from a family's priors, `Simulator` makes
batches to train on. Importing this package imports no torch; the names below load it when used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lensdist.sim.config import LensLight, SimConfig
from lensdist.sim.families import FAMILIES, Family

if TYPE_CHECKING:
    from lensdist.sim.priors import sample
    from lensdist.sim.raytrace import render
    from lensdist.sim.simulator import Simulator

__all__ = ["FAMILIES", "Family", "LensLight", "SimConfig", "Simulator", "render", "sample"]

_HOME = {"render": "raytrace", "sample": "priors", "Simulator": "simulator"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
