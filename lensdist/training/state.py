"""Save the state of a run into a checkpoint, check it, and restore it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from lensdist.distributed.config import SpeedConfig
from lensdist.distributed.context import DistributedContext
from lensdist.distributed.strategies.base import ParallelStrategy
from lensdist.training.checkpoint import Checkpoint, Damaged
from lensdist.utils.errors import RunError
from lensdist.utils.sealed import fits
from lensdist.utils.tensors import misfit


class TrainState(BaseModel):
    """The scalars of a run. `step` is the position in the data; random numbers are not kept."""

    model_config = ConfigDict(extra="forbid")

    step: int = 0
    """Optimizer steps done."""
    best: float | None = None
    """Best validation score so far."""
    best_step: int | None = Field(None, ge=1)
    bad_evals: int = Field(0, ge=0)
    """Evaluations since `best_step`."""
    window: list[float] = []
    """Losses of the steps since the last row of metrics.jsonl."""


class _Scaler(BaseModel):
    """The state of torch's GradScaler."""

    scale: float
    growth_factor: float
    backoff_factor: float
    growth_interval: int
    growth_tracker: int = Field(alias="_growth_tracker")


class _Meta(BaseModel):
    """The content of a checkpoint besides its tensors."""

    state: TrainState
    config: dict[str, Any]
    data: str
    encoder: str | None
    machine: dict[str, Any]
    scaler: _Scaler | None


def check(saved: Checkpoint) -> None:
    """Check the content of a checkpoint besides its tensors.

    Raises:
        Damaged: something is missing, unknown or of another type.
    """
    try:
        fits(_Meta, {**saved.meta, "scaler": saved.meta.get("scaler") or None})  # {}: switched off
    except ValueError as e:
        raise Damaged(f"{saved.path}: {e}") from e
    state = saved.meta["state"]
    if missing := TrainState.model_fields.keys() - state.keys():
        raise Damaged(f"{saved.path}: state.{min(missing)} is missing")
    if state["step"] != saved.step or (state["best_step"] or 0) > saved.step:
        raise Damaged(f"{saved.path}: its state is of another step")


def check_tensors(saved: Checkpoint, network: nn.Module) -> None:
    """Check that a network can continue from a checkpoint.

    Args:
        saved: its tensors may be on the meta device.
        network: on any device.

    Raises:
        Damaged: it holds the state of another network, or tensors that no optimizer has.
    """
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optim": {}}
    for key, value in saved.tensors.items():
        part, _, name = key.partition("/")
        if part not in parts:
            raise Damaged(f"{saved.path}: {key[:80]} is unknown")
        parts[part][name] = value
    weights = network.state_dict()
    for part in ("model", "average"):
        found = parts[part]
        if part == "average" and not found:
            continue
        if problem := misfit(weights, found):
            raise Damaged(f"{saved.path}: {part}/{problem}")
    parameters = dict(network.named_parameters())
    slots = {name.rpartition("/")[0] for name in parts["optim"]}
    if unknown := slots - parameters.keys():
        raise Damaged(f"{saved.path}: optim/{min(unknown)[:80]} is unknown")
    if problem := misfit(_slots({name: parameters[name] for name in slots}), parts["optim"]):
        raise Damaged(f"{saved.path}: optim/{problem}")


def _slots(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return Adam's state of each parameter, by the names in a checkpoint."""
    found: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        found[f"{name}/step"] = torch.zeros((), device="meta")
        found |= dict.fromkeys((f"{name}/exp_avg", f"{name}/exp_avg_sq"), parameter)
    return found


def describe(
    state: TrainState, world: DistributedContext, machine: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of a checkpoint besides its tensors, as JSON."""
    scaler = world.accelerator.scaler
    return {
        "state": state.model_dump(),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "machine": machine,
    }


def restore(saved: Checkpoint, strategy: ParallelStrategy, world: DistributedContext) -> TrainState:
    """Restore the network and the scaler; each stage restores optimizer and average when it begins.

    Raises:
        RunError: the checkpoint is of another network.
    """
    try:
        strategy.load(saved.tensors)
    except RuntimeError as e:
        raise RunError(
            f"{saved.path} holds another network than the configuration describes: {e}"
        ) from e
    if world.accelerator.scaler is not None and saved.meta.get("scaler"):
        world.accelerator.scaler.load_state_dict(saved.meta["scaler"])
    return TrainState(**saved.meta["state"])


def machine(strategy: str, speed: SpeedConfig, world: DistributedContext) -> dict[str, Any]:
    """Return what the last bits of a run may depend on, by the names in a checkpoint.

    Args:
        strategy: its name, from `strategy_name`.
        speed: compilation and memory layout.
        world: the processes.
    """
    last = speed.channels_last and strategy == "ddp"
    return {
        "engine": strategy,
        "kernels": f"compile {speed.compile}, channels {'last' if last else 'first'}",
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "cpu": platform.machine(),
    }


def machine_changes(saved: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Return a list, as text, of what changed since a checkpoint was saved; None if nothing did."""
    saved = {"engine": "ddp", **saved}  # older checkpoints do not record it: there was only ddp
    changes = [f"{k} {saved[k]} -> {v}" for k, v in now.items() if k in saved and saved[k] != v]
    return ", ".join(changes) or None
