"""What the loop asks of a task. A task knows no process, no file and no tracker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from lensdist.data.preprocess import Preprocess

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
