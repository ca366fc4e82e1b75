"""The interface of parallel strategies: the network, its optimizer and the average of its weights.

State is given and returned by name, so that any strategy continues from what any other has saved,
on any number of processes. During training each process holds its *local shards*: all of every
parameter under DDP, a part of each under FSDP and DeepSpeed. A part is a run of elements in
row-major order (`Share`); a process reads from a checkpoint, and writes to one, its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lensdist.distributed import fp8, speed
from lensdist.distributed.config import OptimConfig, ShardConfig, SpeedConfig
from lensdist.distributed.context import DistributedContext
from lensdist.distributed.micro_batches import StepPlan
from lensdist.distributed.optim import WeightAverage
from lensdist.distributed.shares import Share, nth
from lensdist.utils.stored import Value, elements, whole, wholes
from lensdist.utils.tensors import misfit, under

Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class StrategySettings:
    """The settings of a run that strategies read."""

    optim: OptimConfig
    shard: ShardConfig
    speed: SpeedConfig
    precision: str
    ema: float | None
    """The decay of the weight average (EMA). None: the run keeps no average."""
    reproducible: bool
    """Whether gradients are added in a fixed order (DDP only)."""


class ParallelStrategy(ABC):
    """A network, its optimizer and the average of its weights, shared by all processes.

    Args:
        settings: of the run.
        world: the processes.
        plan: the micro-batches of a step.
        build: builds the network; its initial weights come from torch's global generator.
    """

    replicated: ClassVar[bool]
    """Whether every process holds all of the network. Then it can be called in parts, and one
    process can save its state without the others."""

    def __init__(
        self,
        settings: StrategySettings,
        world: DistributedContext,
        plan: StepPlan,
        build: Build,
    ) -> None:
        self.settings, self.world, self.plan, self.build = settings, world, plan, build
        self.unwrapped: nn.Module = build()
        """The network itself, which is evaluated."""
        self.wrapped: nn.Module = self.unwrapped
        """The network as training calls it."""
        self.optimizer: torch.optim.Optimizer
        self.average: WeightAverage | None = None
        self._shards: dict[str, Tensor] = {}
        self._called: nn.Module = self.unwrapped
        self._unread: Mapping[str, Value] = {}

    @property
    def sharded(self) -> bool:
        """Whether a process holds only a part of each parameter once the network is wrapped."""
        return not self.replicated

    # ---- between stages

    def load(self, tensors: Mapping[str, Value]) -> None:
        """Load the weights of a checkpoint, before the first stage.

        If parameters are sharded, each process reads its own shards after `wrap` has made them.

        Raises:
            RuntimeError: they are of another network.
        """
        saved, own = under("model/", tensors), self.unwrapped.state_dict()
        if problem := misfit(own, saved):
            raise RuntimeError(problem)
        if self.sharded:
            self._unread = saved
            saved = {k: saved[k] for k in own.keys() - dict(self.unwrapped.named_parameters())}
        with torch.no_grad():
            for name, value in saved.items():  # one at a time: they may still be in their files
                own[name].copy_(whole(value))

    def freeze(self, trains: Callable[[str], bool], tensors: Mapping[str, Value]) -> None:
        """Begin a stage: unwrap the network and set which parameters train.

        Args:
            trains: returns whether the parameter of this name trains.
            tensors: the state, by the names of a checkpoint; empty at the start.
        """
        self.reshard()
        for module in {self._called, self.unwrapped}:
            self.world.unwrap(module)
            speed.undo(module)
            fp8.undo(module)
        train_only(self.unwrapped, trains)
        for parameter in self.unwrapped.parameters():
            parameter.grad = None

    def wrap(self, called: nn.Module, tensors: Mapping[str, Value]) -> None:
        """Compile and wrap the network, and build the optimizer, for the parameters that train.

        Args:
            called: the network, or the rest of it if the frozen part's outputs are cached.
            tensors: as for `freeze`.
        """
        self._called = called
        if self.settings.precision == "fp8":
            fp8.apply(called)
        how = self.settings.speed
        if not self.replicated:  # shards are parts of memory in torch's default layout
            how = how.model_copy(update={"channels_last": False})
        speed.apply(called, how)
        self._wrap(called, under("optim/", tensors))
        self._shards = shards = self.local_shards()
        for name in shards if self._unread else ():
            self._set_shard(name, self.shard_like(name, self._unread[name]))
        self._unread = {}
        if self.settings.ema is not None:
            found = under("average/", tensors)
            if found:
                shards = {name: self.shard_like(name, found[name]) for name in shards}
            self.average = WeightAverage(self.settings.ema, shards)

    @abstractmethod
    def _wrap(self, called: nn.Module, optimizer: Mapping[str, Value]) -> None:
        """Set `wrapped` and `optimizer`, and load the optimizer's state."""

    # ---- a step

    def micro_batch(self, index: int) -> AbstractContextManager[None]:
        """Return a context for the two passes of this process's `index`-th micro-batch."""
        return nullcontext()

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Do a micro-batch's backward pass; a step's gradient is the mean over all of them."""

    def step(self, rate: float, updates: int, *, measure: bool = False) -> Tensor | float | None:
        """Clip, step, delete the gradients and update the average.

        Args:
            rate: learning rate.
            updates: steps done, including this one.
            measure: compute the gradient's norm also if nothing is clipped.

        Returns:
            The norm of the gradient of all parameters, on all processes, before clipping; still on
            the device. None if it was not computed.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = self._step(self.settings.optim.clip_norm, measure)
        if self.average is not None:
            self.average.update(self._shards, updates)
        return norm

    @abstractmethod
    def _step(self, clip_norm: float | None, measure: bool) -> Tensor | float | None:
        """Clip and step; return the norm as `step` does."""

    def unscaled(self, norm: Tensor) -> Tensor:
        """Remove fp16's scale from a norm; an unclipped gradient keeps it until the step."""
        scaler = self.world.accelerator.scaler
        return norm if scaler is None else norm / scaler.scale(norm.new_ones(()))

    # ---- the state

    @abstractmethod
    def local_shards(self) -> dict[str, Tensor]:
        """Return this process's part of each parameter: the memory itself, not a copy."""

    @abstractmethod
    def full_tensor(self, name: str, shard: Tensor) -> Tensor:
        """Return a full parameter, or a tensor sharded like it; all processes call it."""

    @abstractmethod
    def extent(self, name: str) -> tuple[torch.Size, int, int]:
        """Return a full parameter's shape, and the first and the last but one of the elements of
        this process's shard, in row-major order."""

    @torch.no_grad()
    def shard_like(self, name: str, tensor: Value) -> Tensor:
        """Return this process's shard of a tensor in a parameter's shape: a copy."""
        _, begin, end = self.extent(name)
        # In a parameter's own memory layout; the last shards may be padded, with zeros.
        shard = torch.zeros_like(self.local_shards()[name], dtype=tensor.dtype)
        shard.view(-1)[: end - begin] = elements(tensor, begin, end)
        return shard

    @torch.no_grad()
    def _set_shard(self, name: str, shard: Tensor) -> None:
        """Set this process's shard of a parameter."""
        self._shards[name].copy_(shard)

    @abstractmethod
    def optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the optimizer's full tensors as `<parameter name>/<slot>`; all processes call it.

        Keys are names, never indices: with indices, state is silently given to other parameters
        when groups change.
        """

    def reshard(self) -> None:  # noqa: B027 — only sharded strategies need it
        """Free full parameters that are still in memory, before their shards are changed."""

    @contextmanager
    def ema_weights(self) -> Iterator[nn.Module]:
        """Yield the network with the average of its weights, if there is one."""
        if self.average is None:
            self.reshard()
            yield self.unwrapped
            self.reshard()
            return
        self.reshard()
        self.average.swap(self._shards)
        try:
            yield self.unwrapped
        finally:
            self.reshard()
            self.average.swap(self._shards)

    @torch.no_grad()
    def shares(self) -> dict[str, Share]:
        """Return this process's part of the state, by the names of a checkpoint.

        What every process holds is divided too, but buffers, which are the main process's.
        """
        self.reshard()
        buffers = None if self.world.main else 0
        shards, found = self._shards, dict(self.optimizer_shares())
        found = {f"optim/{name}": share for name, share in found.items()}
        average = {} if self.average is None else self.average.shards
        for key, value in self.unwrapped.state_dict().items():
            for part, own in (("model", shards), ("average", average)):
                if key in own:
                    found[f"{part}/{key}"] = self._share(key, own[key])
                elif part == "model" or average:
                    values = value.detach().reshape(-1)[:buffers]
                    found[f"{part}/{key}"] = Share(value.shape, 0, values)
        return {k: share for k, share in found.items() if share.values.numel() or self.world.main}

    def _share(self, name: str, shard: Tensor) -> Share:
        if not self.sharded:
            return nth(shard, self.world.rank, self.world.size)
        shape, begin, end = self.extent(name)
        return Share(shape, begin, shard.detach().reshape(-1)[: end - begin])

    @abstractmethod
    def optimizer_shares(self) -> Iterator[tuple[str, Share]]:
        """Yield this process's part of the optimizer's tensors as `<parameter name>/<slot>`."""

    @torch.no_grad()
    def state_dict(self) -> dict[str, Tensor]:
        """Return the full state by the names of a checkpoint; all processes call it."""
        self.reshard()
        found: dict[str, Tensor] = {}

        def put(key: str, tensor: Tensor) -> None:
            # A device may have room for its shards, not for all parameters.
            found[key] = tensor if self.replicated else tensor.cpu()

        shards = self._shards
        average = {} if self.average is None else self.average.shards
        for key, value in self.unwrapped.state_dict().items():
            put(f"model/{key}", self.full_tensor(key, shards[key]) if key in shards else value)
            if average:  # buffers are copied at each step, so they are the network's own
                put(
                    f"average/{key}",
                    self.full_tensor(key, average[key]) if key in average else value,
                )
        for key, value in self.optimizer_state():
            put(f"optim/{key}", value)
        return found

    def export_model(self, tensors: Mapping[str, Value]) -> nn.Module:
        """Return the network to export: full, with the average of the weights if there is one.

        All processes call it; if the network is sharded, only the main process gets it full.

        Args:
            tensors: the state, by the names of a checkpoint, if no stage began in this process.
        """
        if not self._shards:
            if self.replicated or self.world.main:
                saved = under("average/", tensors) or under("model/", tensors)
                self.unwrapped.load_state_dict(wholes(saved))
            return self.unwrapped
        return self._export_model()

    def _export_model(self) -> nn.Module:
        with self.ema_weights() as model:
            state = model.state_dict()
            for key, shard in self._shards.items():
                found = self.full_tensor(key, shard)
                if self.world.main:  # a node may not have room for one such network per process
                    state[key] = found.cpu().clone()
        if not self.world.main:
            return self.unwrapped
        whole = self.build()
        whole.load_state_dict(state)
        return whole


def train_only(network: nn.Module, trains: Callable[[str], bool]) -> None:
    """Set which parameters train, and put frozen modules into evaluation mode.

    So they have no dropout, and their running statistics do not change.
    """
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trains(name))
    network.train()
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()
