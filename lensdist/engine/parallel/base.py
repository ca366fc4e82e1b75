"""What the training loop asks of an engine: a network, its optimizer and the average of its
weights, held by all processes together.

Tensors go in and out whole and by name, so that what one engine has saved any other goes on from,
on any number of processes. In between, each process holds its *pieces*: all of every parameter
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
from lensdist.engine.world import World

Build = Callable[[], nn.Module]


class Engine(ABC):
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

    def __init__(self, cfg: BaseRun, world: World, plan: StepPlan, build: Build) -> None:
        self.cfg, self.world, self.plan, self.build = cfg, world, plan, build
        self.bare: nn.Module = build()
        """The network: what is evaluated."""
        self.model: nn.Module = self.bare
        """The same as it is called in training."""
        self.optimizer: torch.optim.Optimizer
        self.average: WeightAverage | None = None
        self._pieces: dict[str, Tensor] = {}
        self._called: nn.Module = self.bare

    # ---- between stages

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the network the weights of a checkpoint, before the first stage.

        Raises:
            RuntimeError: they are of another network.
        """
        self.bare.load_state_dict(under("model/", tensors))

    def freeze(self, trains: Callable[[str], bool], tensors: Mapping[str, Tensor]) -> None:
        """Begin a stage: undo what wrapped the last, and say which parameters train.

        Args:
            trains: whether the parameter of a name does.
            tensors: the state, by the names of a checkpoint; empty at the start.
        """
        self.settle()
        for module in {self._called, self.bare}:
            self.world.unwrap(module)
            speed.restore(module)
            fp8.undo(module)
        train_only(self.bare, trains)
        for parameter in self.bare.parameters():
            parameter.grad = None

    def wrap(self, called: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Make everything that depends on which parameters train.

        Args:
            called: the network, or what is left of it where the frozen part's outputs are kept.
            tensors: as for `freeze`.
        """
        self._called = called
        if self.cfg.precision == "fp8":
            fp8.to_fp8(called)
        how = self.cfg.speed
        if not self.replicated:  # shares are cut out of memory in torch's ordinary layout
            how = how.model_copy(update={"channels_last": False})
        speed.quicken(called, how, self.world.device, self.world.size)
        self._wrap(called, under("optim/", tensors))
        self._pieces = pieces = self.pieces()
        if self.cfg.train.ema is not None:
            found = under("average/", tensors)
            if found:
                pieces = {name: self.cut(name, found[name]) for name in pieces}
            self.average = WeightAverage(self.cfg.train.ema, pieces)

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

    def step(self, rate: float, updates: int, *, measure: bool = False) -> Tensor | float | None:
        """Clip, step, forget the gradients and move the average.

        Args:
            rate: learning rate.
            updates: steps done, with this one.
            measure: ask for the gradient's norm also if nothing is clipped.

        Returns:
            The norm of the gradient of all parameters, on all processes, before clipping; still on
            the device. None if it was not computed.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = self._step(self.cfg.optim.clip_norm, measure)
        if self.average is not None:
            self.average.update(self._pieces, updates)
        return norm

    @abstractmethod
    def _step(self, clip_norm: float | None, measure: bool) -> Tensor | float | None:
        """Clip and step; return the norm as `step` does."""

    def unscaled(self, norm: Tensor) -> Tensor:
        """Take fp16's scale off a norm. A gradient that is not clipped keeps it until the step."""
        scaler = self.world.accelerator.scaler
        return norm if scaler is None else norm / scaler.scale(norm.new_ones(()))

    # ---- the state

    @abstractmethod
    def pieces(self) -> dict[str, Tensor]:
        """What this process holds of each parameter: the memory itself, no copy."""

    @abstractmethod
    def whole(self, name: str, piece: Tensor) -> Tensor:
        """A parameter, or a tensor cut like it, from the pieces of all processes; all call it."""

    @abstractmethod
    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """This process's piece of a tensor that is shaped like a parameter; a copy."""

    @abstractmethod
    def optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        """The optimizer's tensors as `<parameter name>/<slot>`, whole; all processes call it.

        By name, never by index: with index keys, state is silently given to other parameters when
        groups change.
        """

    def settle(self) -> None:  # noqa: B027 — only sharded engines have something to do
        """Forget whole parameters that are still about: their pieces are changed from outside."""

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The network with the average of its weights, where there is one."""
        if self.average is None:
            self.settle()
            yield self.bare
            self.settle()
            return
        self.settle()
        self.average.swap(self._pieces)
        try:
            yield self.bare
        finally:
            self.settle()
            self.average.swap(self._pieces)

    @torch.no_grad()
    def capture(self, *, everywhere: bool = False) -> dict[str, Tensor]:
        """The whole state by the names of a checkpoint; all processes call it.

        Args:
            everywhere: on every process; else on the main one, and nothing on the others.
        """
        self.settle()
        keep = everywhere or self.world.main
        found: dict[str, Tensor] = {}

        def put(key: str, tensor: Tensor) -> None:
            if keep:
                # A process may have room for its share of all parameters, not for all of them.
                found[key] = tensor if self.replicated else tensor.cpu()

        pieces = self._pieces
        average = {} if self.average is None else self.average.pieces
        for key, value in self.bare.state_dict().items():
            put(f"model/{key}", self.whole(key, pieces[key]) if key in pieces else value)
            if average:  # buffers are copied at each step, so they are the network's own
                put(f"average/{key}", self.whole(key, average[key]) if key in average else value)
        for key, value in self.optimizer_state():
            put(f"optim/{key}", value)
        return found

    def finished(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The network for the export, once training is done: whole, with the average of the weights
        where there is one; all processes call it, and of a sharded one the main process gets it.

        Args:
            tensors: the state, by the names of a checkpoint, where no stage was left to begin.
        """
        if not self._pieces:
            self.bare.load_state_dict(under("average/", tensors) or under("model/", tensors))
            return self.bare
        return self._finished()

    def _finished(self) -> nn.Module:
        with self.averaged() as model:
            state = model.state_dict()
            for key, piece in self._pieces.items():
                found = self.whole(key, piece)
                if self.world.main:  # one machine holds several processes, but one such network
                    state[key] = found.cpu().clone()
        if not self.world.main:
            return self.bare
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
