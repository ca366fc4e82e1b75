"""Distributed data parallel (Li et al. 2020, arXiv:2006.15704).

Every process holds all of the network; gradients are averaged during the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import ClassVar

import torch
from torch import Tensor, nn

from lensdist.distributed.context import DistributedContext
from lensdist.distributed.gradients import Averaged, FixedOrder
from lensdist.distributed.micro_batches import StepPlan
from lensdist.distributed.optim import (
    as_laid_out,
    build_optimizer,
    load_optimizer_state,
    optimizer_state,
)
from lensdist.distributed.shares import Share, nth
from lensdist.distributed.strategies.base import Build, ParallelStrategy, StrategySettings
from lensdist.utils.stored import Value, whole, wholes


class DDPStrategy(ParallelStrategy):
    """DDP through accelerate, or gradients added in a fixed order (`train.reproducible`)."""

    replicated: ClassVar[bool] = True

    def __init__(
        self, settings: StrategySettings, world: DistributedContext, plan: StepPlan, build: Build
    ) -> None:
        super().__init__(settings, world, plan, build)
        self.unwrapped.to(world.device)

    def _wrap(self, called: nn.Module, optimizer: Mapping[str, Value]) -> None:
        # DDP decides at wrapping which gradients it reduces. A parameter that is unfrozen later
        # would silently train on each process separately. So each stage wraps.
        reproducible = self.settings.reproducible
        self.wrapped = self.world.wrap(called, ddp=not reproducible)
        self.optimizer = self._stepper = build_optimizer(self.unwrapped, self.settings.optim)
        load_optimizer_state(self.unwrapped, self.optimizer, wholes(optimizer))
        if self.world.accelerator.scaler is not None:
            # Only then: accelerate's wrapper searches the disk for packages at each step, 0.25 ms.
            self._stepper = self.world.accelerator.prepare_optimizer(
                self.optimizer, device_placement=False
            )
        gradients = FixedOrder if reproducible else Averaged
        self._gradients = gradients(self.wrapped, self.world, self.plan)

    def micro_batch(self, index: int) -> AbstractContextManager[None]:
        return self._gradients.micro_batch(index)

    def backward(self, loss: Tensor) -> None:
        self._gradients.backward(loss)

    def _step(self, clip_norm: float | None, measure: bool) -> Tensor | None:
        self._gradients.finish()
        norm: Tensor | None = None
        if clip_norm is not None:
            norm = self.world.accelerator.clip_grad_norm_(self.wrapped.parameters(), clip_norm)
        elif measure:
            gradients = [p.grad for p in self.wrapped.parameters() if p.grad is not None]
            norm = self.unscaled(nn.utils.get_total_norm(gradients))
        self._stepper.step()
        self._stepper.zero_grad()
        return norm

    def local_shards(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.unwrapped.named_parameters()}

    def full_tensor(self, name: str, shard: Tensor) -> Tensor:
        return shard

    def extent(self, name: str) -> tuple[torch.Size, int, int]:
        p = self.unwrapped.get_parameter(name)
        return p.shape, 0, p.numel()

    @torch.no_grad()
    def shard_like(self, name: str, tensor: Value) -> Tensor:
        return as_laid_out(whole(tensor), self.unwrapped.get_parameter(name))

    def optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        yield from optimizer_state(self.unwrapped, self.optimizer).items()

    def optimizer_shares(self) -> Iterator[tuple[str, Share]]:
        for key, value in self.optimizer_state():
            yield key, nth(value, self.world.rank, self.world.size)

    def _export_model(self) -> nn.Module:
        if self.average is not None:
            self.average.swap(self._shards)
        return self.unwrapped
