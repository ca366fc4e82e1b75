"""Recognition of torchvision's networks by the names and shapes of their weights."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from torch import Tensor

from lensdist.utils.errors import UserError
from lensdist.utils.text import some

Weights = dict[str, Tensor]

# The keys are (width of the stem, layers per block) for DenseNets, and (layers per block, shape of
# the first 3x3 kernels, whether bottlenecks) for ResNets.
_DENSENETS: dict[Any, str] = {
    (64, (6, 12, 24, 16)): "densenet121",
    (96, (6, 12, 36, 24)): "densenet161",
    (64, (6, 12, 32, 32)): "densenet169",
    (64, (6, 12, 48, 32)): "densenet201",
}
_RESNETS: dict[Any, str] = {
    ((2, 2, 2, 2), (64, 64), False): "resnet18",
    ((3, 4, 6, 3), (64, 64), False): "resnet34",
    ((3, 4, 6, 3), (64, 64), True): "resnet50",
    ((3, 4, 23, 3), (64, 64), True): "resnet101",
    ((3, 8, 36, 3), (64, 64), True): "resnet152",
    ((3, 4, 6, 3), (128, 4), True): "resnext50_32x4d",
    ((3, 4, 23, 3), (256, 8), True): "resnext101_32x8d",
    ((3, 4, 23, 3), (256, 4), True): "resnext101_64x4d",
    ((3, 4, 6, 3), (128, 128), True): "wide_resnet50_2",
    ((3, 4, 23, 3), (128, 128), True): "wide_resnet101_2",
}
MAX_LAYERS = 32  # the most layers of a head
_OLD_DENSE = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.[a-z_]+)")


def architecture_of(state: Weights) -> str | None:
    """Return torchvision's name for the network of these weights; None if it is unknown."""
    stem = state.get("features.conv0.weight")
    if stem is not None:
        blocks = _counts(state, r"features\.denseblock(\d+)\.denselayer(\d+)\.")
        return _DENSENETS.get((stem.shape[0] if stem.dim() else 0, blocks))
    first = state.get("layer1.0.conv2.weight")
    if first is not None and "conv1.weight" in state:
        key = (_counts(state, r"layer(\d+)\.(\d+)\."), tuple(first.shape[:2]))
        return _RESNETS.get((*key, "layer1.0.conv3.weight" in state))
    return None


def _counts(state: Weights, pattern: str) -> tuple[int, ...]:
    found = {m.groups() for name in state if (m := re.match(pattern, name))}
    blocks = Counter(block for block, _ in found)
    return tuple(blocks[b] for b in sorted(blocks))


def members_of(tensors: Weights) -> list[tuple[str, Weights]]:
    """Return the networks in a file, each with its architecture.

    Raises:
        UserError: a tensor belongs to an unknown network.
    """
    whole = architecture_of(tensors)
    if whole is not None:
        return [(whole, tensors)]
    groups: dict[str, Weights] = {}
    for name, value in tensors.items():
        # `model1.features…`, `densenet.features…`, or a list's `members.0.features…`
        match = re.fullmatch(r"([^.]+(?:\.\d+)?)\.(.+)", name)
        if match is None:
            raise UserError(f"its tensor {name!a} belongs to no network that can be imported")
        groups.setdefault(match[1], {})[match[2]] = value
    found = []
    for prefix, state in groups.items():
        architecture = architecture_of(state)
        if architecture is None:
            raise UserError(
                f"its {some([f'{prefix}.{name}' for name in state])} belong to no network that can "
                "be imported: DenseNets and ResNets of torchvision, and the recipe's autoencoder "
                "and classifier"
            )
        found.append((architecture, state))
    return found


def head_of(state: Weights) -> tuple[tuple[int, ...], int, int]:
    """Return the head's hidden widths, the classes, and the bands of the first convolution.

    Raises:
        UserError: the network does not end in linear layers.
    """
    place = "classifier" if "features.conv0.weight" in state else "fc"
    first = "features.conv0.weight" if place == "classifier" else "conv1.weight"
    linear = {n: t for n, t in state.items() if n.startswith(f"{place}.") and t.dim() == 2}
    if not linear:
        raise UserError(f"its network has no {place} layer, so it is not a classifier")
    if len(linear) > MAX_LAYERS:
        raise UserError(f"its {place} holds {len(linear)} layers, more than {MAX_LAYERS}")
    # These are `fc.weight`, or `fc.0.weight`, `fc.4.weight`, … in order; others are refused later.
    widths = [linear[name].shape[0] for name in sorted(linear, key=lambda n: (len(n), n))]
    return tuple(widths[:-1]), widths[-1], dim(state, first, 4, 1)


def modern_names(state: Weights) -> Weights:
    """Rename DenseNet's weights from before PyTorch 0.4, which forbade dots in names.

    Raises:
        UserError: a weight is there under both names.
    """
    renamed = {_OLD_DENSE.sub(r"\1\2", name): value for name, value in state.items()}
    if len(renamed) < len(state):
        raise UserError("it holds weights of one DenseNet layer under both old and new names")
    return renamed


def dim(tensors: Weights, name: str, dims: int, axis: int) -> int:
    """Return the length of an axis of a tensor with `dims` axes.

    Raises:
        UserError: there is no such tensor.
    """
    if name not in tensors or tensors[name].dim() != dims:
        raise UserError(f"its {name} is missing or does not have {dims} axes")
    return int(tensors[name].shape[axis])
