"""Where a network looks in an image: attention rollout, or Grad-CAM.

Transformers of this package: the attention of all layers, multiplied down to the input (Abnar &
Zuidema 2020, arXiv:2005.00928). Convolutional networks: the last feature maps, weighted by how the
largest output depends on them (Selvaraju et al. 2017, arXiv:1610.02391).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lensdist.models.vit import Attention


def looks(network: nn.Module, x: Tensor) -> Tensor | None:
    """Compute where a network looks: (B, H, W) float32, from 0 to 1, the largest value of each.

    None: it has neither transformer layers of this package nor convolutions without attention.

    Args:
        network: in eval mode; called once. Of what convolutions return, (B, …), the largest number
            of each image is explained: a classifier's most probable class.
        x: its input (B, C, H, W).
    """
    layers = [module for module in network.modules() if isinstance(module, Attention)]
    if layers:
        found = _rollout(network, layers, x)
    elif any("Attention" in type(module).__name__ for module in network.modules()):
        return None  # what convolutions see there is not what the network answers from
    else:
        found = _grad_cam(network, x)
    if found is None:
        return None
    found = F.interpolate(found[:, None].float(), x.shape[2:], mode="bilinear")[:, 0]
    return found / found.amax((1, 2), keepdim=True).clamp_min(1e-30)


@torch.no_grad()
def _rollout(network: nn.Module, layers: list[Attention], x: Tensor) -> Tensor | None:
    """Return what each token of the input gives to the mean of the last tokens: (B, h, w)."""
    found: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(layer, Attention)
        weights = layer.weights(inputs[0]).mean(1)
        weights = (weights + torch.eye(weights.shape[1], device=weights.device)) / 2
        found[:] = [weights @ found[0] if found else weights]

    with ExitStack() as hooks:
        for each in layers:
            hooks.enter_context(each.register_forward_pre_hook(keep))
        network(x)
    tokens = found[0].mean(1)
    side = round(tokens.shape[1] ** 0.5)
    return tokens.view(-1, side, side) if side * side == tokens.shape[1] else None


@torch.enable_grad()
def _grad_cam(network: nn.Module, x: Tensor) -> Tensor | None:
    """Return the map (B, h, w) of the last convolution, after its norm and activation."""
    last: list[Tensor] = []

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.dim() != 4 or min(output.shape[2:]) < 2:
            return
        follows = bool(last) and output.shape[2:] == last[0].shape[2:]
        if follows or isinstance(module, nn.Conv2d):
            last[:] = [output]

    leaves = [module for module in network.modules() if not any(module.children())]
    with ExitStack() as hooks:
        for leaf in leaves:
            hooks.enter_context(leaf.register_forward_hook(keep))
        output = network(x.detach().requires_grad_())
    if not last:
        return None
    (slope,) = torch.autograd.grad(output.flatten(1).amax(1).sum(), last[0])
    return (slope.mean((2, 3), keepdim=True) * last[0]).sum(1).relu().detach()
