"""DDP: every process holds all of the network, and gradients are averaged during the backward pass
(Li et al. 2020, arXiv:2006.15704)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import ClassVar

import torch
from torch import Tensor, nn

from lensdist.config.schema import BaseRun
from lensdist.engine.batches import StepPlan
from lensdist.engine.gradients import Averaged, FixedOrder
from lensdist.engine.optim import (
    as_laid_out,
    build_optimizer,
    load_optimizer_state,
    optimizer_state,
)
from lensdist.engine.parallel.base import Build, Engine
from lensdist.engine.world import World


class DataParallel(Engine):
    """Through accelerate, or by adding gradients in a fixed order (`train.reproducible`)."""

    replicated: ClassVar[bool] = True

    def __init__(self, cfg: BaseRun, world: World, plan: StepPlan, build: Build) -> None:
        super().__init__(cfg, world, plan, build)
        self.bare.to(world.device)

    def _wrap(self, called: nn.Module, optimizer: Mapping[str, Tensor]) -> None:
        # DDP decides at wrapping which gradients it reduces: a parameter that is unfrozen
        # afterwards trains on every process by itself, without a word. So each stage wraps anew.
        reproducible = self.cfg.train.reproducible
        self.model = self.world.wrap(called, ddp=not reproducible)
        self.optimizer = self._stepper = build_optimizer(self.bare, self.cfg.optim)
        load_optimizer_state(self.bare, self.optimizer, optimizer)
        if self.world.accelerator.scaler is not None:
            # Only then: accelerate's wrapper looks for packages on the disk at each step, 0.25 ms.
            self._stepper = self.world.accelerator.prepare_optimizer(
                self.optimizer, device_placement=False
            )
        gradients = FixedOrder if reproducible else Averaged
        self._gradients = gradients(self.model, self.world, self.plan)

    def micro_batch(self, index: int) -> AbstractContextManager[None]:
        return self._gradients.micro_batch(index)

    def backward(self, loss: Tensor) -> None:
        self._gradients.backward(loss)

    def _step(self, clip_norm: float | None, measure: bool) -> Tensor | None:
        self._gradients.finish()
        norm: Tensor | None = None
        if clip_norm is not None:
            norm = self.world.accelerator.clip_grad_norm_(self.model.parameters(), clip_norm)
        elif measure:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = self.unscaled(nn.utils.get_total_norm(gradients))
        self._stepper.step()
        self._stepper.zero_grad()
        return norm

    def pieces(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.bare.named_parameters()}

    def whole(self, name: str, piece: Tensor) -> Tensor:
        return piece

    @torch.no_grad()
    def cut(self, name: str, tensor: Tensor) -> Tensor:
        return as_laid_out(tensor, self.bare.get_parameter(name))

    def optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        yield from optimizer_state(self.bare, self.optimizer).items()

    def _finished(self) -> nn.Module:
        if self.average is not None:
            self.average.swap(self._pieces)
        return self.bare
