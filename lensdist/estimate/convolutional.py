"""The common task's networks on paper: torchvision's DenseNets, ResNets and ShuffleNets as far as
presets use them, and lensnet (torch-free)."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from lensdist.estimate.layers import Tape
from lensdist.models.config import EnsembleConfig


class _Dense(NamedTuple):
    """Huang et al. 2017, arXiv:1608.06993, table 1."""

    growth: int
    blocks: tuple[int, ...]
    first: int


class _Residual(NamedTuple):
    """He et al. 2016, arXiv:1512.03385, table 1."""

    blocks: tuple[int, ...]
    bottleneck: bool


class _Shuffle(NamedTuple):
    """Ma et al. 2018, arXiv:1807.11164, table 5."""

    repeats: tuple[int, ...]
    widths: tuple[int, ...]


_NETWORKS: dict[str, _Dense | _Residual | _Shuffle] = {
    "densenet121": _Dense(32, (6, 12, 24, 16), 64),
    "densenet161": _Dense(48, (6, 12, 36, 24), 96),
    "densenet169": _Dense(32, (6, 12, 32, 32), 64),
    "densenet201": _Dense(32, (6, 12, 48, 32), 64),
    "resnet18": _Residual((2, 2, 2, 2), False),
    "resnet34": _Residual((3, 4, 6, 3), False),
    "resnet50": _Residual((3, 4, 6, 3), True),
    "resnet101": _Residual((3, 4, 23, 3), True),
    "resnet152": _Residual((3, 8, 36, 3), True),
    "shufflenet_v2_x0_5": _Shuffle((4, 8, 4), (24, 48, 96, 192, 1024)),
    "shufflenet_v2_x1_0": _Shuffle((4, 8, 4), (24, 116, 232, 464, 1024)),
}
_LENSNET = "lensnet"

KNOWN = (_LENSNET, *_NETWORKS)
"""Members that are written down here."""


def ensemble(tape: Tape, cfg: EnsembleConfig, bands: int, size: int, classes: int) -> None:
    """All members, each with its head, as `Ensemble`; `bands` and `size` of what it sees.

    Raises:
        KeyError: a member is not in `KNOWN`.
    """
    if cfg.resize is not None and cfg.resize != size:
        tape.pool(bands * size**2, bands * cfg.resize**2, kept=False)
    size = cfg.resize or size
    for k, member in enumerate(cfg.members):
        name = f"members.{k}."
        seen = 3 if bands == 1 and cfg.grey == "repeat" and member != _LENSNET else bands
        tape.cast(seen * size**2)
        features = _trunk(tape, name, member, seen, size, cfg.head_dropout)
        _head(tape, cfg, features, classes)
        tape.close(f"{name}head")
    if cfg.combine == "learned" and len(cfg.members) > 1:
        tape.parameter(len(cfg.members))
        tape.close("mix")


def _trunk(tape: Tape, name: str, member: str, bands: int, size: int, dropout: float) -> int:
    if member == _LENSNET:
        return _lensnet(tape, name, bands, size, dropout)
    net = _NETWORKS[member]
    if isinstance(net, _Dense):
        return _densenet(tape, name, net, bands, size)
    if isinstance(net, _Residual):
        return _resnet(tape, name, net, bands, size)
    return _shufflenet(tape, name, net, bands, size)


def _head(tape: Tape, cfg: EnsembleConfig, features: int, classes: int) -> None:
    widths = [features, *cfg.head_dims]
    for before, after in pairwise(widths):
        tape.linear(1, before, after)
        tape.pointwise(after)
        tape.batch_norm(after, after)
        tape.dropout(after, cfg.head_dropout)
    tape.linear(1, widths[-1], classes)


def _activated(
    tape: Tape,
    side: int,
    before: int,
    after: int,
    kernel: int,
    stride: int = 1,
    *,
    groups: int = 1,
    relu: bool = True,
    kept: bool = True,
) -> int:
    """Convolution, BatchNorm, and ReLU in place, whose output the next convolution keeps."""
    side = tape.conv(side, before, after, kernel, stride, groups=groups, kept=kept)
    tape.batch_norm(after * side**2, after)
    if relu:
        tape.pointwise(after * side**2)
    return side


def _stem(tape: Tape, bands: int, size: int, width: int, kernel: int) -> int:
    side = _activated(tape, size, bands, width, kernel, 2)
    out = (side - 1) // 2 + 1
    tape.pool(width * side**2, width * out**2, indices=True)
    return out


def _densenet(tape: Tape, name: str, net: _Dense, bands: int, size: int) -> int:
    side, width = _stem(tape, bands, size, net.first, 7), net.first
    tape.close(f"{name}stem")
    for i, layers in enumerate(net.blocks):
        for j in range(layers):
            numbers, inner = width * side**2, 4 * net.growth
            tape.cat(numbers)  # of all that came before: the copy that BatchNorm keeps
            tape.batch_norm(numbers, width)
            tape.pointwise(numbers)
            _activated(tape, side, width, inner, 1)
            tape.conv(side, inner, net.growth, 3)
            tape.close(f"{name}block{i + 1}.{j}")
            width += net.growth
        numbers = width * side**2
        tape.cat(numbers)
        tape.batch_norm(numbers, width)
        if i + 1 == len(net.blocks):
            tape.pointwise(numbers, kept=tape.width)
            tape.pool(numbers, width, kept=False)
            tape.close(f"{name}norm")
            break
        tape.pointwise(numbers)
        tape.conv(side, width, width // 2, 1)
        width //= 2
        tape.pool(width * side**2, width * (side // 2) ** 2)
        side //= 2
        tape.close(f"{name}block{i + 1}.transition")
    return width


def _resnet(tape: Tape, name: str, net: _Residual, bands: int, size: int) -> int:
    side, before = _stem(tape, bands, size, 64, 7), 64
    tape.close(f"{name}stem")
    for i, layers in enumerate(net.blocks):
        planes = 64 << i
        after = 4 * planes if net.bottleneck else planes
        for j in range(layers):
            stride = 2 if i and not j else 1
            if net.bottleneck:
                _activated(tape, side, before, planes, 1)
                out = _activated(tape, side, planes, planes, 3, stride)
                _activated(tape, out, planes, after, 1, relu=False)
            else:
                out = _activated(tape, side, before, planes, 3, stride)
                _activated(tape, out, planes, planes, 3, relu=False)
            if stride > 1 or before != after:  # its input is the first convolution's
                _activated(tape, side, before, after, 1, stride, relu=False, kept=False)
            side, before = out, after
            tape.pointwise(after * side**2, inputs=2)
            tape.pointwise(after * side**2)
            tape.close(f"{name}block{i + 1}.{j}")
    tape.pool(before * side**2, before)
    tape.close(f"{name}pool")
    return before


def _shufflenet(tape: Tape, name: str, net: _Shuffle, bands: int, size: int) -> int:
    first, *stages, last = net.widths
    side, before = _stem(tape, bands, size, first, 3), first
    tape.close(f"{name}stem")
    for i, (repeats, after) in enumerate(zip(net.repeats, stages, strict=True)):
        half = after // 2
        for j in range(repeats):
            stride, seen = (2, before) if not j else (1, half)
            if stride > 1:
                out = _activated(tape, side, before, before, 3, 2, groups=before, relu=False)
                _activated(tape, out, before, half, 1)
            else:  # half the channels pass by, but a view keeps all of its input
                tape.keep(half * side**2)
            _activated(tape, side, seen, half, 1, kept=stride == 1)
            side = _activated(tape, side, half, half, 3, stride, groups=half, relu=False)
            _activated(tape, side, half, half, 1)
            tape.cat(after * side**2)
            tape.cat(after * side**2)  # shuffled
            tape.close(f"{name}stage{i + 2}.{j}")
        before = after
    _activated(tape, side, before, last, 1)
    tape.pool(last * side**2, last)
    tape.close(f"{name}last")
    return last


def _lensnet(tape: Tape, name: str, bands: int, size: int, dropout: float) -> int:
    half, quarter = size // 2, size // 4
    tape.pool(bands * size**2, bands * half**2, kept=False)
    _activated(tape, half, bands, 16, 5)
    tape.close(f"{name}stem")
    _activated(tape, half, 16, 16, 3)
    tape.pool(16 * half**2, 16 * quarter**2)
    tape.close(f"{name}block1")
    _activated(tape, quarter, 16, 32, 3)
    _activated(tape, quarter, 32, 32, 3)
    tape.pool(32 * quarter**2, 32)
    tape.batch_norm(32, 32, affine=False)
    tape.dropout(32, dropout)
    tape.close(f"{name}block2")
    return 32
