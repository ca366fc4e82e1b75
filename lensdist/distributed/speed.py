"""Apply the settings `speed` to a network: compilation, recomputation, memory layout; and undo it.

Only `forward` of single modules is replaced, on the instance: names of parameters, classes and
hooks stay as they are (FSDP's hooks run in `__call__`, around it). The new `forward` is used in
training only: evaluation keeps nothing for a backward pass, and each of its batch sizes would be
compiled again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lensdist.distributed.compile_cache import close_to_others
from lensdist.distributed.config import SpeedConfig, TrainConfig
from lensdist.models.backbones import Backbone
from lensdist.models.vit import blocks_of
from lensdist.utils.errors import UserError

_MARK = "_lensdist_speed"

Forward = Callable[..., Any]


def check(
    cfg: SpeedConfig, train: TrainConfig, strategy: str, device: torch.device, world_size: int
) -> None:
    """Check that the device, and the run's other settings, allow the settings `cfg`.

    Args:
        cfg: the settings to check.
        train: the run's batches.
        strategy: its name, from `strategy_name`.
        device: of this process.
        world_size: number of processes.

    Raises:
        UserError: they do not; nothing was written.
    """
    if cfg.compile == "whole" and cfg.recompute:
        raise UserError("speed.recompute goes with speed.compile: blocks or no, not whole")
    if cfg.cuda_graphs and (device.type != "cuda" or world_size > 1):
        raise UserError(
            f"speed.cuda_graphs goes with one process on a GPU, not {world_size} on "
            f"{device.type}; set it to false"
        )
    if cfg.cuda_graphs and train.micro() != train.global_batch:
        # The next replay overwrites the gradients, so they cannot be accumulated.
        raise UserError(
            "speed.cuda_graphs goes with one micro-batch a step, not with train.micro_batch "
            f"{train.micro()} of train.global_batch {train.global_batch}; set "
            "train.micro_batch=auto, or speed.cuda_graphs=false"
        )
    if cfg.compile == "blocks" and strategy == "deepspeed stage 3":
        raise UserError(
            "speed.compile: blocks gains nothing under deepspeed's stage 3, whose hooks cut every "
            "layer into pieces; set engine=fsdp, shard.stage=2, or speed.compile=no"
        )
    if cfg.compile != "no":
        close_to_others()
        _check_compiler(device)


def check_network(cfg: SpeedConfig, network: nn.Module) -> None:
    """Check that a network, which may be on the meta device, has the layers that `cfg` needs.

    Raises:
        UserError: it does not.
    """
    if blocks_of(network):
        return
    if cfg.recompute:
        raise UserError(
            "speed.recompute is for transformer layers, and this network has none: in a second "
            "forward pass BatchNorm would update its running statistics twice; set it to false"
        )
    if cfg.compile == "blocks":
        raise UserError(
            "speed.compile: blocks is for transformer layers, and this network has none; use whole"
        )


def apply(network: nn.Module, cfg: SpeedConfig, *, backend: str = "inductor") -> None:
    """Apply `cfg`; call it again at each stage, after layers are frozen and before wrapping.

    Args:
        network: the network, or the part of it that is called.
        cfg: settings that passed `check` and `check_network`.
        backend: torch.compile's.
    """
    if not cfg.channels_last:  # a network is built in channels last
        for module in network.modules():
            if isinstance(module, Backbone):
                module.channels_first()
    if cfg.compile != "no":
        close_to_others()
        # Code compiled by an earlier stage would count towards torch's limit of recompilations.
        torch.compiler.reset()
    compiled = partial(_compiled, backend=backend, cuda_graphs=cfg.cuda_graphs)
    for block in blocks_of(network):
        quick: Forward = block.forward
        if cfg.compile == "blocks":
            # All blocks share one code object, and parameters are its inputs: it is compiled once.
            quick = compiled(quick)
        if cfg.recompute:
            # It restores torch's random state, so that dropout drops the same values again.
            quick = partial(checkpoint, quick, use_reentrant=False)
        if quick != block.forward:
            _put(block, quick)
    if cfg.compile == "whole":
        _put(network, compiled(network.forward))


def undo(network: nn.Module) -> None:
    """Undo `apply`, except for the layout of weights, which the optimizer's state has too."""
    for module in network.modules():
        if vars(module).pop(_MARK, False):
            vars(module).pop("forward", None)


def _put(module: nn.Module, quick: Forward) -> None:
    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        training = module.training and torch.is_grad_enabled()
        return (quick if training else plain)(*args, **kwargs)

    vars(module).update({"forward": forward, _MARK: True})


def _compiled(forward: Forward, backend: str, cuda_graphs: bool) -> Forward:
    options: dict[str, Any] | None = None
    if backend == "inductor":
        options = {
            # Draw dropout's random numbers as without compilation, not by inductor's own generator.
            "fallback_random": True,
            # Otherwise inductor times kernels to choose them, and a resumed run may choose others.
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "triton.cudagraphs": cuda_graphs,
        }
    # Shapes in training never change within a stage.
    return torch.compile(forward, backend=backend, dynamic=False, options=options)


def _check_compiler(device: torch.device) -> None:
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise UserError(
                "speed.compile needs the package triton and a GPU of compute capability 7.0 or "
                "more; set it to no"
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as e:
        raise UserError(
            "speed.compile needs a C++ compiler here; install g++, or set it to no"
        ) from e
