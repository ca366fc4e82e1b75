"""Everything that a run is between two steps, to and from a checkpoint."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from lensdist.engine.checkpoint import Checkpoint
from lensdist.engine.parallel.base import Engine
from lensdist.engine.world import World
from lensdist.errors import RunError


@dataclass
class TrainState:
    """The scalars. The position in the data is `step`; random numbers are keyed, not kept."""

    step: int = 0
    """Optimizer steps done."""
    best: float | None = None
    """Best validation score so far."""
    best_step: int | None = None
    bad_evals: int = 0
    """Evaluations since then."""
    window: list[float] = field(default_factory=list)
    """Losses of the steps since the last row of metrics.jsonl."""


def describe(state: TrainState, world: World) -> dict[str, Any]:
    """What a checkpoint says besides its tensors, as JSON."""
    scaler = world.accelerator.scaler
    return {
        "state": asdict(state),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "machine": machine(world),
    }


def restore(saved: Checkpoint, engine: Engine, world: World) -> TrainState:
    """Put the network and the scaler back; optimizer and average come with their stage.

    Raises:
        RunError: the checkpoint is of another network.
    """
    try:
        engine.load(saved.tensors)
    except RuntimeError as e:
        raise RunError(
            f"{saved.path} holds another network than the configuration describes: {e}"
        ) from e
    if world.accelerator.scaler is not None and saved.meta["scaler"]:
        world.accelerator.scaler.load_state_dict(saved.meta["scaler"])
    return TrainState(**saved.meta["state"])


def machine(world: World) -> dict[str, Any]:
    """What the last bits of a run may depend on, besides its configuration."""
    return {
        "engine": world.engine,
        "kernels": world.kernels,
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "cpu": platform.machine(),
    }


def machine_changes(saved: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What has changed since a checkpoint was saved, in words."""
    saved = {"engine": "ddp", **saved}  # there was no other before it was recorded
    changes = [f"{k} {saved[k]} -> {v}" for k, v in now.items() if k in saved and saved[k] != v]
    return ", ".join(changes) or None
