"""Average the gradients of a step's micro-batches.

`Averaged` lets DDP average them, which is fast; numbers of processes then agree up to rounding.
`FixedOrder` gathers each micro-batch's gradient and adds them in the order of the micro-batches:
the same bits on any number of processes (`train.reproducible`), for more communication.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from lensdist.distributed.context import DistributedContext
from lensdist.distributed.micro_batches import StepPlan


class Averaged:
    """The average by DDP, which communicates during the last micro-batch's backward pass."""

    def __init__(self, model: nn.Module, world: DistributedContext, plan: StepPlan) -> None:
        self._model = model
        self._world = world
        self._last = len(plan.mine) - 1
        self._scale = world.size / plan.count  # DDP divides by the number of processes

    @contextmanager
    def micro_batch(self, index: int) -> Iterator[None]:
        quiet = index != self._last and self._world.size > 1
        with self._world.accelerator.no_sync(self._model) if quiet else nullcontext():
            yield

    def backward(self, loss: Tensor) -> None:
        self._world.backward(loss * self._scale if self._scale != 1 else loss)

    def finish(self) -> None:
        pass


class FixedOrder:
    """The average in a fixed order, from gradients gathered from all processes."""

    def __init__(self, model: nn.Module, world: DistributedContext, plan: StepPlan) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._world = world
        self._count = plan.count
        self._rows: list[list[Tensor]] = []

    @contextmanager
    def micro_batch(self, index: int) -> Iterator[None]:
        yield

    def backward(self, loss: Tensor) -> None:
        self._world.backward(loss)
        row = []
        for p in self._parameters:
            row.append(torch.zeros_like(p) if p.grad is None else p.grad)
            p.grad = None
        self._rows.append(row)

    @torch.no_grad()
    def finish(self) -> None:
        # One parameter at a time, to hold only its gradients of all micro-batches.
        for i, p in enumerate(self._parameters):
            rows = self._world.gather(torch.stack([row[i] for row in self._rows]))
            total = rows[0].clone()
            for row in rows[1:]:
                total += row
            p.grad = torch.empty_like(p).copy_(total.div_(self._count))  # in the layout of p
        self._rows.clear()
