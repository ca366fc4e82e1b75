"""What makes a step faster or smaller (`speed` of a configuration), put on a network and taken off.

Only `forward` of single modules is replaced, on the instance: names of parameters, classes and
hooks stay as they are (FSDP's hooks run in `__call__`, around it). And only in training: evaluation
keeps nothing for a backward pass, and its batches of other sizes would each be compiled again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lensdist.config.schema import BaseRun, CommonRun
from lensdist.engine.compile_cache import close_to_others
from lensdist.engine.config import SpeedConfig
from lensdist.errors import UserError
from lensdist.models.backbones import Backbone
from lensdist.models.vit import blocks_of

_MARK = "_lensdist_speed"

Forward = Callable[..., Any]


def check(cfg: BaseRun, device: torch.device, world_size: int) -> None:
    """Make sure that a run's network and device can do what `cfg.speed` asks for.

    Raises:
        UserError: they cannot; to be told before anything is written.
    """
    _refuse(cfg.speed, not isinstance(cfg, CommonRun), device, world_size)
    if cfg.speed.cuda_graphs and cfg.train.micro() != cfg.train.global_batch:
        # Gradients lie where the next replay writes: there is nothing to add up to.
        raise UserError(
            "speed.cuda_graphs goes with one micro-batch a step, not with train.micro_batch "
            f"{cfg.train.micro()} of train.global_batch {cfg.train.global_batch}; set "
            "train.micro_batch=auto, or speed.cuda_graphs=false"
        )
    if cfg.speed.compile == "blocks" and (cfg.engine, cfg.shard.stage) == ("deepspeed", 3):
        raise UserError(
            "speed.compile: blocks gains nothing under deepspeed's stage 3, whose hooks cut every "
            "layer into pieces; set engine=fsdp, shard.stage=2, or speed.compile=no"
        )
    if cfg.speed.compile != "no":
        close_to_others()
        _check_compiler(device)


def apply(
    bare: nn.Module,
    cfg: SpeedConfig,
    device: torch.device,
    world_size: int,
    *,
    backend: str = "inductor",
) -> None:
    """Do what `cfg` asks for; at each stage anew, once layers are frozen and before wrapping.

    Args:
        bare: the network, or the part of it that is called.
        cfg: what to do.
        device: of the run.
        world_size: number of processes.
        backend: torch.compile's.

    Raises:
        UserError: the network or the device cannot do it.
    """
    blocks = blocks_of(bare)
    _refuse(cfg, bool(blocks), device, world_size)
    if not cfg.channels_last:  # as a network is laid out when it is built
        for module in bare.modules():
            if isinstance(module, Backbone):
                module.channels_first()
    if cfg.compile != "no":
        close_to_others()
        # What an earlier stage compiled would count towards torch's limit of recompilations.
        torch.compiler.reset()
    compiled = partial(_compiled, backend=backend, cuda_graphs=cfg.cuda_graphs)
    for block in blocks:
        quick: Forward = block.forward
        if cfg.compile == "blocks":
            # All blocks share one code object, and parameters are its inputs: compiled once.
            quick = compiled(quick)
        if cfg.recompute:
            # Keeps torch's random state, so that dropout drops the same again.
            quick = partial(checkpoint, quick, use_reentrant=False)
        if quick != block.forward:
            _put(block, quick)
    if cfg.compile == "whole":
        _put(bare, compiled(bare.forward))


def undo(bare: nn.Module) -> None:
    """Undo `apply`, except for the layout of weights, which the optimizer's state has too."""
    for module in bare.modules():
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
            # Dropout's random numbers as without compilation, not inductor's own.
            "fallback_random": True,
            # Else kernels are chosen by the clock, and a resumed run may choose others.
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "triton.cudagraphs": cuda_graphs,
        }
    # Shapes in training never change within a stage.
    return torch.compile(forward, backend=backend, dynamic=False, options=options)


def _refuse(cfg: SpeedConfig, layers: bool, device: torch.device, world_size: int) -> None:
    """`layers`: whether the network has transformer layers."""
    if cfg.recompute and not layers:
        raise UserError(
            "speed.recompute is for transformer layers, and this network has none: in a second "
            "forward pass BatchNorm's running statistics would move twice; set it to false"
        )
    if cfg.compile == "blocks" and not layers:
        raise UserError(
            "speed.compile: blocks is for transformer layers, and this network has none; use whole"
        )
    if cfg.compile == "whole" and cfg.recompute:
        raise UserError("speed.recompute goes with speed.compile: blocks or no, not whole")
    if cfg.cuda_graphs and (device.type != "cuda" or world_size > 1):
        raise UserError(
            f"speed.cuda_graphs goes with one process on a GPU, not {world_size} on "
            f"{device.type}; set it to false"
        )


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
