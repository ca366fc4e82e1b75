"""BatchNorm that does not depend on the number of processes.

In a forward pass BatchNorm normalises by its micro-batch and moves its running statistics. Over a
step they must move once, by the mean over all the step's micro-batches on all processes. A layer's
update is linear in the statistics, so that mean is the mean of what each micro-batch alone would
have made of the old values: start every micro-batch from the old values, keep the results, average.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lensdist.engine.world import World


class RunningStatistics:
    """The running statistics of a model's BatchNorm layers that train."""

    def __init__(self, model: nn.Module, world: World, micro_batches: int) -> None:
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
        if micro_batches > 1:  # one micro-batch a step: the layers' own update is the right one
            for layer in layers:
                assert layer.running_mean is not None
                assert layer.running_var is not None
                assert layer.num_batches_tracked is not None
                self._floats += [layer.running_mean, layer.running_var]
                self._counts.append(layer.num_batches_tracked)
        self._results: list[Tensor] = []

    @torch.no_grad()
    def begin(self) -> None:
        """At the start of a step."""
        if self._floats:
            self._old = [t.clone() for t in self._floats]
            self._old_counts = [t.clone() for t in self._counts]
            self._results = []

    @torch.no_grad()
    def collect(self) -> None:
        """After each micro-batch's forward pass."""
        if self._floats:
            self._results.append(torch.cat([t.flatten() for t in self._floats]))
            torch._foreach_copy_(self._floats, self._old)
            torch._foreach_copy_(self._counts, self._old_counts)

    @torch.no_grad()
    def finish(self) -> None:
        """At the end of a step: the mean, in an order that no number of processes changes."""
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
