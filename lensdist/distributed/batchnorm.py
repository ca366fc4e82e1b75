"""Keep BatchNorm independent of the number of processes.

In a forward pass BatchNorm normalises by its micro-batch and updates its running statistics. Over a
step they must be updated once, by the mean over all the step's micro-batches on all processes. A
layer's update is linear in the statistics, so that mean is the mean of the updates that each
micro-batch alone would make: start every micro-batch from the old values, keep the results,
average.

With `train.sync_batchnorm` the layers normalise by the whole step instead: see `synchronise`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lensdist.distributed.context import DistributedContext


class RunningStatistics:
    """The running statistics of those BatchNorm layers of a model that train."""

    def __init__(self, model: nn.Module, world: DistributedContext, micro_batches: int) -> None:
        layers = [
            m
            for m in model.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm)
            and m.track_running_stats
            and m.training
        ]
        self._world = world
        self._floats: list[Tensor] = []
        self._counts: list[Tensor] = []
        if micro_batches > 1:  # with one micro-batch per step, the layers' own update is right
            for layer in layers:
                assert layer.running_mean is not None
                assert layer.running_var is not None
                assert layer.num_batches_tracked is not None
                self._floats += [layer.running_mean, layer.running_var]
                self._counts.append(layer.num_batches_tracked)
        self._results: list[Tensor] = []

    @torch.no_grad()
    def begin(self) -> None:
        """Save the statistics at the start of a step."""
        if self._floats:
            self._old = [t.clone() for t in self._floats]
            self._old_counts = [t.clone() for t in self._counts]
            self._results = []

    @torch.no_grad()
    def collect(self) -> None:
        """Collect the statistics after a micro-batch's forward pass, and restore the old ones."""
        if self._floats:
            self._results.append(torch.cat([t.flatten() for t in self._floats]))
            torch._foreach_copy_(self._floats, self._old)
            torch._foreach_copy_(self._counts, self._old_counts)

    @torch.no_grad()
    def finish(self) -> None:
        """Set the statistics to their mean at the end of a step, added in a fixed order."""
        if self._floats:
            rows = self._world.gather(torch.stack(self._results))
            total = rows[0].clone()
            for row in rows[1:]:
                total += row
            total /= len(rows)
            sizes = [t.numel() for t in self._floats]
            for old, new in zip(self._floats, torch.split(total, sizes), strict=True):
                old.copy_(new.view_as(old))
            torch._foreach_add_(self._counts, 1)


def synchronise(model: nn.Module, size: int) -> None:
    """Make BatchNorm layers that train normalise by the micro-batches of all processes together.

    torch's SyncBatchNorm does the same, but only on GPUs. Every process computes the same
    statistics, so running statistics need no exchange.

    Args:
        model: the network; its layers keep their classes and the names of their tensors.
        size: number of processes, each with one micro-batch of equal size per step.
    """
    if size == 1:
        return
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            vars(layer)["forward"] = partial(_normalised, layer, type(layer).forward, size)


def _normalised(
    layer: nn.modules.batchnorm._BatchNorm,
    plain: Callable[[Any, Tensor], Tensor],
    size: int,
    x: Tensor,
) -> Tensor:
    if not layer.training:
        return plain(layer, x)
    axes = [0, *range(2, x.ndim)]
    # As in torch's own: float32 sums even under autocast, centred before they are squared.
    centred = x.float()
    mean = _summed(centred.mean(axes, keepdim=True)) / size
    centred = centred - mean
    variance = _summed(centred.square().mean(axes, keepdim=True)) / size
    y = centred * torch.rsqrt(variance + layer.eps)
    if layer.affine:
        shape = mean.shape
        y = y * layer.weight.view(shape) + layer.bias.view(shape)
    if layer.track_running_stats:
        _move(layer, mean.flatten(), variance.flatten(), size * x.numel() // mean.numel())
    return y.to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes, also of gradients: each process's loss depends on all terms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _all_reduced(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _all_reduced(gradients[0])


def _summed(x: Tensor) -> Tensor:
    return _Sum.apply(x)  # type: ignore[no-untyped-call,no-any-return]


def _all_reduced(x: Tensor) -> Tensor:
    x = x.contiguous().clone()
    torch.distributed.all_reduce(x)
    return x


@torch.no_grad()
def _move(
    layer: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor, count: int
) -> None:
    """Move the running statistics towards those of `count` values per channel."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked += 1
    share = layer.momentum
    if share is None:  # the mean over all steps
        share = 1 / float(layer.num_batches_tracked)
    layer.running_mean.lerp_(mean, share)
    layer.running_var.lerp_(variance * (count / (count - 1)), share)
