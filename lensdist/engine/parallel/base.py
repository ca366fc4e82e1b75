"""What the training loop asks of an engine: a network, its optimizer and the average of its
weights, held by all processes together.

Tensors go in and out whole and by name, so that what one engine has saved any other goes on from,
on any number of processes. In between, each process holds its *shards*: all of every parameter
under DDP, a share under FSDP and DeepSpeed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from lensdist.config.schema import BaseRun
from lensdist.engine import fp8, speed
from lensdist.engine.batches import StepPlan
from lensdist.engine.optim import WeightAverage
from lensdist.engine.world import DistributedContext

Build = Callable[[], nn.Module]


class ParallelStrategy(ABC):
    """How processes share a network.

    Args:
        cfg: the run's configuration.
        world: the processes.
        plan: what each computes of a step.
        build: makes the network, its initial weights drawn from torch's global generator.
    """

    replicated: ClassVar[bool]
    """Whether every process holds all of the network, so that it can be cut up and called in parts,
    and one process alone can say what its state is."""

    def __init__(
        self, cfg: BaseRun, world: DistributedContext, plan: StepPlan, build: Build
    ) -> None:
        self.cfg, self.world, self.plan, self.build = cfg, world, plan, build
        self.unwrapped: nn.Module = build()
        """The network: what is evaluated."""
        self.wrapped: nn.Module = self.unwrapped
        """The same as it is called in training."""
        self.optimizer: torch.optim.Optimizer
        self.average: WeightAverage | None = None
        self._shards: dict[str, Tensor] = {}
        self._called: nn.Module = self.unwrapped

    # ---- between stages

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the network the weights of a checkpoint, before the first stage.

        Raises:
            RuntimeError: they are of another network.
        """
        self.unwrapped.load_state_dict(under("model/", tensors))

    def freeze(self, trains: Callable[[str], bool], tensors: Mapping[str, Tensor]) -> None:
        """Begin a stage: undo what wrapped the last, and say which parameters train.

        Args:
            trains: whether the parameter of a name does.
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

    def wrap(self, called: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Make everything that depends on which parameters train.

        Args:
            called: the network, or what is left of it where the frozen part's outputs are kept.
            tensors: as for `freeze`.
        """
        self._called = called
        if self.cfg.precision == "fp8":
            fp8.apply(called)
        how = self.cfg.speed
        if not self.replicated:  # shares are cut out of memory in torch's ordinary layout
            how = how.model_copy(update={"channels_last": False})
        speed.apply(called, how, self.world.device, self.world.size)
        self._wrap(called, under("optim/", tensors))
        self._shards = shards = self.local_shards()
        if self.cfg.train.ema is not None:
            found = under("average/", tensors)
            if found:
                shards = {name: self.shard_like(name, found[name]) for name in shards}
            self.average = WeightAverage(self.cfg.train.ema, shards)

    @abstractmethod
    def _wrap(self, called: nn.Module, optimizer: Mapping[str, Tensor]) -> None:
        """Make `model` and `optimizer`, and give the latter its state."""

    # ---- a step

    def micro_batch(self, index: int) -> AbstractContextManager[None]:
        """Around forward and backward pass of the `index`-th of this process's micro-batches."""
        return _nothing()

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Backward pass of a micro-batch's mean loss; the step's gradient is the mean over all."""

    def step(self, rate: float, updates: int) -> None:
        """Clip, step, forget the gradients and move the average.

        Args:
            rate: learning rate.
            updates: steps done, with this one.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._step(self.cfg.optim.clip_norm)
        if self.average is not None:
            self.average.update(self._shards, updates)

    @abstractmethod
    def _step(self, clip_norm: float | None) -> None: ...

    # ---- the state

    @abstractmethod
    def local_shards(self) -> dict[str, Tensor]:
        """What this process holds of each parameter: the memory itself, no copy."""

    @abstractmethod
    def full_tensor(self, name: str, shard: Tensor) -> Tensor:
        """A parameter, or a tensor cut like it, from the shards of all processes; all call it."""

    @abstractmethod
    def shard_like(self, name: str, tensor: Tensor) -> Tensor:
        """This process's shard of a tensor that is shaped like a parameter; a copy."""

    @abstractmethod
    def optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        """The optimizer's tensors as `<parameter name>/<slot>`, whole; all processes call it.

        By name, never by index: with index keys, state is silently given to other parameters when
        groups change.
        """

    def reshard(self) -> None:  # noqa: B027 — only sharded engines have something to do
        """Forget whole parameters that are still about: their shards are changed from outside."""

    @contextmanager
    def ema_weights(self) -> Iterator[nn.Module]:
        """The network with the average of its weights, where there is one."""
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
    def state_dict(self, *, everywhere: bool = False) -> dict[str, Tensor]:
        """The whole state by the names of a checkpoint; all processes call it.

        Args:
            everywhere: on every process; else on the main one, and nothing on the others.
        """
        self.reshard()
        keep = everywhere or self.world.main
        found: dict[str, Tensor] = {}

        def put(key: str, tensor: Tensor) -> None:
            if keep:
                # A process may have room for its share of all parameters, not for all of them.
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

    def export_model(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The network for the export, once training is done: whole, with the average of the weights
        where there is one; all processes call it, and of a sharded one the main process gets it.

        Args:
            tensors: the state, by the names of a checkpoint, where no stage was left to begin.
        """
        if not self._shards:
            self.unwrapped.load_state_dict(under("average/", tensors) or under("model/", tensors))
            return self.unwrapped
        return self._export_model()

    def _export_model(self) -> nn.Module:
        with self.ema_weights() as model:
            state = model.state_dict()
            for key, shard in self._shards.items():
                found = self.full_tensor(key, shard)
                if self.world.main:  # one machine holds several processes, but one such network
                    state[key] = found.cpu().clone()
        if not self.world.main:
            return self.unwrapped
        whole = self.build()
        whole.load_state_dict(state)
        return whole


def train_only(network: nn.Module, trains: Callable[[str], bool]) -> None:
    """Say which parameters train, and put what is frozen into the state in which it will be used:
    no dropout, and running statistics that stay."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trains(name))
    network.train()
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with a prefix, without it."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


@contextmanager
def _nothing() -> Iterator[None]:
    yield
