"""A network that is cut in two after its frozen part."""

from __future__ import annotations

from collections.abc import Callable
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
