"""DeepSpeed's ZeRO, stages 1 to 3 (Rajbhandari et al. 2020, arXiv:1910.02054).

It is called directly: accelerate's own wrapper imports transformers and does not run on a CPU.
DeepSpeed's half precisions are not used either: products run under accelerate's autocast as under
DDP, weights stay float32, and losses are the same. DeepSpeed's own checkpoints are pickles, so the
state is read from its flat buffers by name, and written back.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from lensdist.distributed.context import DistributedContext
from lensdist.distributed.micro_batches import StepPlan
from lensdist.distributed.optim import build_optimizer, state_by_parameter
from lensdist.distributed.shares import Share, nth
from lensdist.distributed.strategies.base import Build, ParallelStrategy, StrategySettings
from lensdist.utils.stored import Value, elements, whole


class DeepSpeedStrategy(ParallelStrategy):
    """ZeRO: stage 1 shards the optimizer's state, 2 also gradients, 3 also parameters."""

    replicated: ClassVar[bool] = False

    def __init__(
        self, settings: StrategySettings, world: DistributedContext, plan: StepPlan, build: Build
    ) -> None:
        super().__init__(settings, world, plan, build)
        self._deepspeed = _deepspeed(world)
        self._stage = settings.shard.stage
        self._engine: Any = None

    @property
    def sharded(self) -> bool:
        return self._stage == 3

    def freeze(self, trains: Callable[[str], bool], tensors: Mapping[str, Value]) -> None:
        if self._engine is not None:
            # DeepSpeed cannot undo its changes to the parameters: begin with new ones.
            self._engine.destroy()
            self._engine, self._shards, self.average = None, {}, None
            self.unwrapped = self.wrapped = self._called = self.build()
            gc.collect()  # its hooks and the network refer to each other
            self.load(tensors)
        super().freeze(trains, tensors)

    def _wrap(self, called: nn.Module, optimizer: Mapping[str, Value]) -> None:
        self.world.wrap(called, ddp=False)
        saved = state_by_parameter(called, optimizer)
        adam = build_optimizer(called, self.settings.optim)
        adam.param_groups = _of_equal_steps(adam.param_groups, saved)
        settings = self._settings()
        if self._stage == 3:
            # Move one parameter at a time from the CPU: a device may not have room for all of them.
            for buffer in called.buffers():
                buffer.data = buffer.to(self.world.device)
            self._deepspeed.zero.Init(module=called, config_dict_or_path=settings)
        self._engine, *_ = self._deepspeed.initialize(model=called, optimizer=adam, config=settings)
        self.wrapped, self.optimizer = self._engine, adam
        self._load(saved)

    def _settings(self) -> dict[str, Any]:
        cfg = self.settings
        elements = cfg.speed.bucket_mb * 1_000_000 // 4
        zero: dict[str, Any] = {
            "stage": self._stage,
            "reduce_bucket_size": elements,
            "allgather_bucket_size": elements,
            "overlap_comm": self.world.device.type == "cuda",
            # Parameters that stay full would not change with their shards (`WeightAverage.swap`).
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": elements,
            "memory_efficient_linear": False,  # it rounds in another order in half precision
        }
        if cfg.shard.offload:
            pinned = {"device": "cpu", "pin_memory": self.world.device.type == "cuda"}
            zero["offload_optimizer"] = pinned
            if self._stage == 3:
                zero["offload_param"] = pinned
        return {
            "train_micro_batch_size_per_gpu": self.plan.micro_batch,
            "gradient_accumulation_steps": len(self.plan.mine),
            "gradient_clipping": cfg.optim.clip_norm or 0.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # the same Adam as everywhere
            "steps_per_print": 2**62,
        }

    def micro_batch(self, index: int) -> AbstractContextManager[None]:
        return self._micro_batch(index == len(self.plan.mine) - 1)

    @contextmanager
    def _micro_batch(self, last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(last)
        yield
        if not last:
            self._engine.step()  # it only counts

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)  # it divides by accumulation steps and processes

    def _step(self, clip_norm: float | None, measure: bool) -> Tensor | float | None:
        self._engine.step()
        return cast("Tensor | float | None", self._engine.get_global_grad_norm())

    # ---- the state

    def local_shards(self) -> dict[str, Tensor]:
        named = self.unwrapped.named_parameters()
        if self._stage == 3:
            return {name: p.ds_tensor.data for name, p in named}  # type: ignore[attr-defined]
        return {name: p.detach() for name, p in named}

    def full_tensor(self, name: str, shard: Tensor) -> Tensor:
        if self._stage < 3:
            return shard
        p: Any = self.unwrapped.get_parameter(name)
        shard = shard.to(self.world.device)
        flat = shard.new_empty(self.world.size * shard.numel())
        torch.distributed.all_gather_into_tensor(flat, shard.contiguous())
        return flat[: p.ds_numel].view(p.ds_shape)

    def extent(self, name: str) -> tuple[torch.Size, int, int]:
        p = self.unwrapped.get_parameter(name)
        shape = _shape(p)
        if self._stage < 3:
            return shape, 0, shape.numel()
        n = p.ds_tensor.numel()  # type: ignore[attr-defined]
        first = min(self.world.rank * n, shape.numel())
        return shape, first, min(first + n, shape.numel())

    @torch.no_grad()
    def shard_like(self, name: str, tensor: Value) -> Tensor:
        if self._stage == 3:
            return super().shard_like(name, tensor)
        p = self.unwrapped.get_parameter(name)
        return torch.empty_like(p, requires_grad=False).copy_(whole(tensor))

    def _set_shard(self, name: str, shard: Tensor) -> None:
        from deepspeed.utils import safe_set_local_fp32_param

        super()._set_shard(name, shard)
        safe_set_local_fp32_param(self.unwrapped.get_parameter(name), shard)  # what Adam updates

    def optimizer_shares(self) -> Iterator[tuple[str, Share]]:
        from deepspeed.utils import safe_get_local_optimizer_state

        names = {p: name for name, p in self.unwrapped.named_parameters()}
        self._link()
        for flat, group in self._flats():
            for slot, value in self.optimizer.state.get(flat, {}).items():
                for p in group:
                    key = f"{names[p]}/{slot}"
                    if value.shape != flat.shape:  # the step count
                        yield key, nth(value, self.world.rank, self.world.size)
                    elif self._stage == 3:
                        shard = safe_get_local_optimizer_state(p, slot).to(value.device)
                        yield key, self._share(names[p], shard)
                    elif p._hp_mapping is not None:  # type: ignore[attr-defined]
                        yield key, Share(p.shape, *_fragment(p, slot))
                    else:  # other processes hold all of it
                        yield key, Share(p.shape, 0, value[:0])

    def optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        names = {p: name for name, p in self.unwrapped.named_parameters()}
        self._link()
        for flat, group in self._flats():
            # Sorted, because after loading the order differs between processes.
            state = sorted(self.optimizer.state.get(flat, {}).items())
            for p in group:
                for slot, value in state:
                    if value.shape != flat.shape:  # the step count
                        yield f"{names[p]}/{slot}", value
                        continue
                    yield f"{names[p]}/{slot}", self._slot(names[p], p, slot)

    def _slot(self, name: str, p: nn.Parameter, slot: str) -> Tensor:
        from deepspeed.utils import safe_get_full_optimizer_state, safe_get_local_optimizer_state

        if self._stage == 3:
            return self.full_tensor(name, safe_get_local_optimizer_state(p, slot))
        return cast(Tensor, safe_get_full_optimizer_state(p, slot))

    @torch.no_grad()
    def _load(self, saved: Mapping[nn.Parameter, Mapping[str, Value]]) -> None:
        from deepspeed.utils import safe_set_local_optimizer_state

        names = {p: name for name, p in self.unwrapped.named_parameters()}
        known = [(flat, group) for flat, group in self._flats() if group[0] in saved]
        for flat, group in known:
            state = self.optimizer.state[flat]
            for slot, value in saved[group[0]].items():
                of_step = value.shape != _shape(group[0])
                state[slot] = (
                    whole(value).to(flat.device, copy=True) if of_step else torch.zeros_like(flat)
                )
        self._link()
        for _, group in known:
            for p in group:
                for slot, value in saved[p].items():
                    if value.shape != _shape(p):
                        continue
                    if self._stage == 3:
                        # DeepSpeed's own function ignores the padding of the last shards.
                        safe_set_local_optimizer_state(p, self.shard_like(names[p], value), slot)
                    elif p._hp_mapping is not None:  # type: ignore[attr-defined]
                        begin, fragment = _fragment(p, slot)
                        fragment.copy_(elements(value, begin, begin + fragment.numel()))

    def _flats(self) -> list[tuple[Tensor, list[nn.Parameter]]]:
        """Return the buffers that Adam updates, each with the parameters whose shards are in it."""
        zero = self._engine.optimizer
        if self._stage == 3:
            return list(zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True))
        return list(zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True))

    def _link(self) -> None:
        """Tell stages 1 and 2 which part of Adam's state belongs to which parameter.

        DeepSpeed does so after the first step of the first group of parameters: too early for the
        other groups, and too late for a state that has just been loaded.
        """
        if self._stage < 3:
            from deepspeed.utils import lazy_init_hp_params_optimizer_state

            for flat, group in self._flats():
                lazy_init_hp_params_optimizer_state(group, flat, self.optimizer.state)

    def reshard(self) -> None:
        if self._stage == 3 and self._engine is not None:
            self._engine.optimizer.parameter_offload.partition_all_parameters()


def _deepspeed(world: DistributedContext) -> Any:
    """Import DeepSpeed, and set its device: otherwise it guesses the device, and prints."""
    if world.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # a run without a launcher
    if world.device.type == "cpu":
        # DeepSpeed would compile its own collective, for minutes, in place of gloo's.
        vars(importlib.import_module("deepspeed.comm.torch"))["build_shm_op"] = lambda: None
    return importlib.import_module("deepspeed")


def _of_equal_steps(
    groups: list[dict[str, Any]], saved: Mapping[nn.Parameter, Mapping[str, Value]]
) -> list[dict[str, Any]]:
    """Split groups of parameters by the number of steps that they were trained for.

    DeepSpeed keeps one step count for all parameters of a group. Layers that have just been
    unfrozen would get the count of the others, and with it Adam's bias correction.
    """
    found = []
    for group in groups:
        by_steps: dict[float, list[nn.Parameter]] = {}
        for p in group["params"]:
            steps = float(whole(saved[p]["step"])) if p in saved else 0.0
            by_steps.setdefault(steps, []).append(p)
        found += [{**group, "params": members} for members in by_steps.values()]
    return found


def _fragment(p: Any, slot: str) -> tuple[int, Tensor]:
    """Return this process's part of a parameter's Adam state in stages 1 and 2: the memory itself.

    The number is the index of its first element.
    """
    mapping = p._hp_mapping
    return mapping.lp_fragment_address.start, mapping.get_optim_state_fragment(slot)


def _shape(p: nn.Parameter) -> torch.Size:
    return getattr(p, "ds_shape", p.shape)
