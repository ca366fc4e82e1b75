"""Everything that a run is between two steps, to and from a checkpoint."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lensdist.engine.checkpoint import Checkpoint
from lensdist.engine.optim import WeightAverage, load_optimizer_state, optimizer_state
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


def capture(
    state: TrainState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    world: World,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name, and the rest as JSON. `model` is the bare network."""
    tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"optim/{k}": v for k, v in optimizer_state(model, optimizer).items()}
    if average is not None:
        tensors |= {f"average/{k}": v for k, v in average.model.state_dict().items()}
    scaler = world.accelerator.scaler
    return tensors, {
        "state": asdict(state),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "machine": machine(world),
    }


def restore(
    saved: Checkpoint, model: nn.Module, average: WeightAverage | None, world: World
) -> TrainState:
    """Put the network, its average and the scaler back; the optimizer comes with its stage.

    Raises:
        RunError: the checkpoint is of another network.
    """
    try:
        model.load_state_dict(_under("model/", saved.tensors))
        if average is not None:
            average.model.load_state_dict(_under("average/", saved.tensors))
    except RuntimeError as e:
        raise RunError(
            f"{saved.path} holds another network than the configuration describes: {e}"
        ) from e
    if world.accelerator.scaler is not None and saved.meta["scaler"]:
        world.accelerator.scaler.load_state_dict(saved.meta["scaler"])
    return TrainState(**saved.meta["state"])


def restore_optimizer(
    tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Give the optimizer the tensors that `capture` saved for the parameters it trains."""
    load_optimizer_state(model, optimizer, _under("optim/", tensors))


def machine(world: World) -> dict[str, Any]:
    """What the last bits of a run may depend on, besides its configuration."""
    return {
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "cpu": platform.machine(),
    }


def machine_changes(saved: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What has changed since a checkpoint was saved, in words."""
    changes = [f"{k} {saved.get(k)} -> {v}" for k, v in now.items() if saved.get(k) != v]
    return ", ".join(changes) or None


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
