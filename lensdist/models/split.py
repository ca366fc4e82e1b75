"""A network cut in two where its frozen part ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Part(nn.Module):
    """A part of a network as a module of its own, which can be wrapped for training.

    Args:
        whole: the network; its parameters are this module's.
        compute: what this part does, by the network's own modules.
    """

    def __init__(self, whole: nn.Module, compute: Callable[..., Any]) -> None:
        super().__init__()
        self.whole = whole
        self._compute = compute

    def forward(self, *inputs: Any) -> Any:
        return self._compute(*inputs)
