"""Fully sharded data parallel: torch's `fully_shard` (Zhao et al. 2023, arXiv:2304.11277).

It is called directly: accelerate's own wrapper silently skips FSDP without a GPU, so tests would
not run the code that GPUs run. Parameters are split along their first axis as by `torch.chunk`, and
gathered layer by layer in forward and backward. Products run under accelerate's autocast as under
DDP, so parameters are gathered in float32 and losses are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lensdist.distributed.context import DistributedContext
from lensdist.distributed.micro_batches import StepPlan
from lensdist.distributed.optim import build_optimizer, state_by_parameter
from lensdist.distributed.shares import Share, nth, span
from lensdist.distributed.strategies.base import Build, ParallelStrategy, StrategySettings
from lensdist.models.vit import blocks_of
from lensdist.utils.stored import Value, whole


class FSDPStrategy(ParallelStrategy):
    """The strategy that shards every parameter, its gradient and its optimizer state."""

    replicated: ClassVar[bool] = False

    def __init__(
        self, settings: StrategySettings, world: DistributedContext, plan: StepPlan, build: Build
    ) -> None:
        super().__init__(settings, world, plan, build)
        self._mesh: DeviceMesh | None = None

    def _wrap(self, called: nn.Module, optimizer: Mapping[str, Value]) -> None:
        if self._mesh is None:  # once for all stages: FSDP respects layers frozen later
            self._mesh = init_device_mesh(self.world.device.type, (self.world.size,))
            self._shard(called, self._mesh)
        self.wrapped = self.world.wrap(called, ddp=False)
        self.optimizer = self._stepper = build_optimizer(self.unwrapped, self.settings.optim)
        self._load(optimizer)
        if self.world.accelerator.scaler is not None:
            self._stepper = self.world.accelerator.prepare_optimizer(
                self.optimizer, device_placement=False
            )

    def _shard(self, module: nn.Module, mesh: DeviceMesh) -> None:
        """Shard layer by layer, so that no device ever holds all parameters; then the rest."""
        pinned = CPUOffloadPolicy(pin_memory=self.world.device.type == "cuda")
        offload: OffloadPolicy = pinned if self.settings.shard.offload else OffloadPolicy()
        for part in (*blocks_of(module), module):
            fully_shard(
                part,
                mesh=mesh,
                reshard_after_forward=self.settings.shard.stage == 3,
                offload_policy=offload,
            )
        # Parameters and buffers are now on the device, except for offloaded ones.

    def _load(self, saved: Mapping[str, Value]) -> None:
        names = {p: name for name, p in self.unwrapped.named_parameters()}
        for p, slots in state_by_parameter(self.unwrapped, saved).items():
            state = self.optimizer.state[p]
            for slot, value in slots.items():
                if value.shape != p.shape:  # the step count
                    state[slot] = whole(value).to(_local(p).device, copy=True)
                    continue
                state[slot] = torch.empty_like(p, dtype=value.dtype, requires_grad=False)
                _local(state[slot]).copy_(self.shard_like(names[p], value))

    def backward(self, loss: Tensor) -> None:
        scale = self.world.size / self.plan.count  # FSDP divides by the number of processes
        self.world.backward(loss * scale if scale != 1 else loss)

    @torch.no_grad()
    def _step(self, clip_norm: float | None, measure: bool) -> Tensor | None:
        norm: Tensor | None = None
        if clip_norm is not None:
            self.world.accelerator.unscale_gradients(self._stepper)
            norm = self._norm()
            factor = (clip_norm / (norm + 1e-6)).clamp(max=1.0)
            for gradient in self._gradients():
                gradient.mul_(factor.to(gradient.device, gradient.dtype))
        elif measure:
            norm = self.unscaled(self._norm())
        self._stepper.step()
        self._stepper.zero_grad()
        return norm

    def _norm(self) -> Tensor:
        """Return the norm of `torch.nn.utils.get_total_norm`, reduced on the run's device.

        torch reduces on the gradients' device; with offloading that is the CPU, for which NCCL has
        no collectives.
        """
        squares = [g.double().square().sum().to(self.world.device) for g in self._gradients()]
        total = torch.stack(squares).sum()
        torch.distributed.all_reduce(total)
        return total.sqrt()

    def _gradients(self) -> list[Tensor]:
        return [_local(p.grad) for p in self.unwrapped.parameters() if p.grad is not None]

    def local_shards(self) -> dict[str, Tensor]:
        return {name: _local(p) for name, p in self.unwrapped.named_parameters()}

    def full_tensor(self, name: str, shard: Tensor) -> Tensor:
        p = cast(DTensor, self.unwrapped.get_parameter(name))
        return DTensor.from_local(
            shard.to(self.world.device),
            p.device_mesh,
            p.placements,
            run_check=False,
            shape=p.shape,
            stride=p.stride(),
        ).full_tensor()

    def extent(self, name: str) -> tuple[torch.Size, int, int]:
        shape = self.unwrapped.get_parameter(name).shape
        # The last processes may hold no rows of a short axis.
        first, last = span(shape[0], self.world.rank, self.world.size)
        row = shape[1:].numel()
        return shape, first * row, last * row

    def optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        for name, p in self.unwrapped.named_parameters():
            # Sorted, because after loading the order differs between processes.
            for slot, value in sorted(self.optimizer.state.get(p, {}).items()):
                sharded = isinstance(value, DTensor)
                yield f"{name}/{slot}", self.full_tensor(name, _local(value)) if sharded else value

    def optimizer_shares(self) -> Iterator[tuple[str, Share]]:
        for name, p in self.unwrapped.named_parameters():
            for slot, value in self.optimizer.state.get(p, {}).items():
                if isinstance(value, DTensor):
                    yield f"{name}/{slot}", self._share(name, _local(value))
                else:
                    yield f"{name}/{slot}", nth(value, self.world.rank, self.world.size)

    def reshard(self) -> None:
        for module in self.unwrapped.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


@torch.no_grad()
def _local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor: the memory itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
