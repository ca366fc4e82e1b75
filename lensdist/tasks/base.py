"""What the loop asks of a task. A task knows no process, no file and no tracker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from lensdist.data.transforms import Preprocess

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Stage:
    """A stretch of training in which the same parameters train."""

    epochs: int
    trainable: tuple[str, ...]
    """Prefixes of parameter names; `("",)` is all of them."""

    def trains(self, parameter: str) -> bool:
        """Whether the parameter of that name trains."""
        return parameter.startswith(self.trainable)


@dataclass(frozen=True)
class Split:
    """A network cut in two where its frozen part ends: `rest(*trunk(x))` is `model(x)`."""

    trunk: nn.Module
    """Images as the network sees them (B, C, H, W) -> a tuple of tensors (B, …)."""
    rest: nn.Module
    """Those tensors -> what the network returns."""


class Task(Protocol):
    """One thing that can be trained."""

    name: str
    labels: tuple[str, ...]
    preprocess: Preprocess
    select: tuple[str, Literal["min", "max"]]
    """The score that chooses the best checkpoint, and which way is better."""

    def build(self) -> nn.Module:
        """The network, with initial weights drawn from torch's global generator."""
        ...

    def stages(self, epochs: int) -> list[Stage]:
        """What trains when; the epochs add up to `epochs`."""
        ...

    def loss(self, model: nn.Module, batch: Batch, key: int) -> Tensor:
        """The mean loss of a micro-batch; `key` seeds what is drawn for it."""
        ...

    def outputs(self, model: nn.Module, batch: Batch) -> Batch:
        """What scoring needs of each sample: tensors with a leading batch axis."""
        ...

    def score(self, outputs: Batch) -> dict[str, Any]:
        """Metrics from the outputs of all samples of a split."""
        ...

    def describe(self) -> dict[str, Any]:
        """What an exported model needs besides its weights, as JSON."""
        ...


@runtime_checkable
class Splittable(Protocol):
    """A task whose network's frozen part need not be computed at every step.

    Its `loss` also takes `Split.rest` for the model, and a batch that holds `features.0` and so on
    in place of images.
    """

    def split(self, model: nn.Module, trains: Callable[[str], bool]) -> Split | None:
        """The network cut where its frozen part ends; None where nothing is frozen.

        `trains` says of a parameter's name whether it trains.
        """
        ...

    def image(self, batch: Batch) -> Tensor:
        """What the network sees of a batch: (B, C, H, W)."""
        ...

    def view(self, samples: Tensor, key: int) -> Tensor:
        """Which of its augmentation's views of each sample `loss` would train on: (B,) int64."""
        ...
