"""Describe whether a run's result depends on the number of processes."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from lensdist.distributed.strategies.base import train_only
from lensdist.training.stages import Phase


def of_processes(phase: Phase, network: nn.Module) -> str:
    """Return a sentence for the start of a run; empty if `train.micro_batch` is a number.

    Args:
        phase: the phase to train.
        network: not yet wrapped. The next stage sets again which of its parameters train.
    """
    train = phase.cfg.train
    if train.micro_batch != "auto":
        return ""
    causes = set[str]()
    for stage in phase.task.stages(train.epochs):
        train_only(network, stage.trains)
        causes |= set(_causes(network, synchronised=train.sync_batchnorm))
    if phase.weighted and phase.task.pools_pixels:
        causes.add("weights of pixels")
    if not causes:
        return "micro_batch auto: the result does not depend on the number of processes"
    return (
        "micro_batch auto: the result depends on the number of processes "
        f"({', '.join(sorted(causes))}), unless train.micro_batch is a number"
    )


def _causes(network: nn.Module, *, synchronised: bool) -> Iterator[str]:
    """Yield the kinds of layers that mix a micro-batch's images, among those in training mode."""
    for module in network.modules():
        if not module.training:
            continue
        if isinstance(module, _DropoutNd) and module.p > 0:
            yield "dropout"
        if isinstance(module, _BatchNorm) and not synchronised:
            yield "BatchNorm"
