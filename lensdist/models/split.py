"""Parts of a network: what is frozen and what follows, and its last layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn


class Part(nn.Module):
    """A part of a network as a separate module, which can be wrapped for training.

    Args:
        whole: the network, whose parameters this module shares.
        compute: the forward pass of this part.
    """

    def __init__(self, whole: nn.Module, compute: Callable[..., Any]) -> None:
        super().__init__()
        self.whole = whole
        self._compute = compute

    def forward(self, *inputs: Any) -> Any:
        return self._compute(*inputs)


def last_linear(model: nn.Module) -> Sequence[nn.Module]:
    """Return a network's last linear layer; nothing if it has none."""
    return [each for each in model.modules() if isinstance(each, nn.Linear)][-1:]
