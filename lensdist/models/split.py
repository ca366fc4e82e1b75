"""Parts of a network: what is frozen and what follows, and its last layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn


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


def pooled(features: Tensor) -> Tensor:
    """Return the mean over what is not channels: (B, N, D) of tokens, (B, D, H, W) -> (B, D)."""
    axes = (1,) if features.dim() == 3 else tuple(range(2, features.dim()))
    return features.mean(axes) if axes else features


def entering(model: nn.Module, layers: Sequence[nn.Module], x: Tensor) -> Tensor | None:
    """Compute the pooled inputs of layers side by side, (B, D); None: none of them was called."""
    found: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        found[layer] = pooled(inputs[0])

    with ExitStack() as hooks:
        for each in layers:
            hooks.enter_context(each.register_forward_pre_hook(keep))
        model(x)
    return torch.cat([found[layer] for layer in layers if layer in found], 1) if found else None
