"""Tell whether an image is like the training images, for any network.

Three vectors describe an image: its noise and sharpness at several scales, as on disk; the same of
the network's input, with its brightness, symmetry and rings; and what the network makes of it
before its head. The Mahalanobis distance of each from the training images (Lee et al. 2018,
arXiv:1807.03888) is divided by what 99 % of the validation images stay below. The largest of them
is `unlike`, scaled so that 99 % of the validation images stay below 1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lensdist.data.dataset import Batch
from lensdist.data.masks import good_pixels
from lensdist.models.split import pooled
from lensdist.utils.tensors import under

log = logging.getLogger(__name__)

LIKENESS = "likeness."
"""The prefix of these tensors in an export."""
IMAGES = 2000
"""Most training images that are compared with, and most validation images that set the limit."""
SHARE = 0.99
"""The share of the validation images that are below the limit."""

_LEAST = 20  # fewer validation images cannot set a limit
_FEW = 20.0  # a margin for few validation images, whose extremes say little: 20 / n of a limit
_AXES = 128  # directions of a vector that have a variance each; the others share one
_FLOOR = 1e-3  # of the mean variance, added to every direction's
_BATCH = 64  # images at a time
_TINY = 1e-6
_RINGS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0, 1.5)  # radii, in half the height of an image


class Record:
    """What a network was given, and what some of its layers were, call by call."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.features: list[list[Tensor]] = []

    def vectors(self, count: int) -> dict[str, Tensor] | None:
        """Return the vectors (B, D) of the images of all calls; `features` if there are layers.

        None: the network was not called once for each of `count` images.
        """
        if sum(map(len, self.inputs)) != count or count == 0:
            return None
        found = {"input": torch.cat(self.inputs)}
        if any(self.features):
            columns = [torch.cat(each) for each in zip(*self.features, strict=True)]
            found["features"] = torch.cat(columns, 1)
        return found if all(len(each) == count for each in found.values()) else None


@contextmanager
def watched(network: nn.Module, layers: Sequence[nn.Module]) -> Iterator[Record]:
    """Record the network's input, and that of some of its layers, while the context is open."""
    record = Record()

    def begin(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and inputs[0].dim() == 4:
            record.inputs.append(input_numbers(inputs[0].detach()))
        record.features.append([])

    def layer(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        record.features[-1].append(pooled(inputs[0].detach().double()).cpu())

    with ExitStack() as hooks:
        hooks.enter_context(network.register_forward_pre_hook(begin))
        for each in layers:
            hooks.enter_context(each.register_forward_pre_hook(layer))
        yield record


def input_numbers(x: Tensor) -> Tensor:
    """Describe a network's input (B, C, H, W) by some numbers of each band: (B, C * n) float64.

    They are those of `_texture`, the mean, the deviation, what a turn by 180 degrees changes, and
    the mean and deviation in rings.
    """
    x = x.cpu().double()  # there a median is deterministic
    mean = x.mean((2, 3), keepdim=True)
    off = x - mean
    found = [mean[..., 0, 0], _log(_rms(off)), _log(_rms(off - off.flip(2, 3))), *_texture(x)]
    rows, columns = (torch.linspace(-1, 1, n) for n in x.shape[2:])
    radius = torch.hypot(rows[:, None], columns[None])
    for low, high in pairwise(_RINGS):
        ring = x[:, :, (radius >= low) & (radius < high)]
        if ring.shape[2] > 3:
            found += [ring.mean(2), _log(ring.std(2))]
    return torch.cat(found, 1)


def image_numbers(raw: Tensor, good: Tensor | None) -> Tensor:
    """Describe images on disk (B, C, H, W) whatever their unit, offset and place: (B, C * n).

    Args:
        raw: the images.
        good: bool, (B, 1 or C, H, W); other pixels count as mean ones. None: all are good.
    """
    x = raw.cpu().double()
    seen = torch.ones_like(x) if good is None else good.cpu().double().expand_as(x)
    count = seen.sum((2, 3), keepdim=True).clamp_min(1)
    off = torch.where(seen > 0, x - (x * seen).sum((2, 3), keepdim=True) / count, 0.0)
    deviation = (off.square().sum((2, 3), keepdim=True) / count).sqrt()
    return torch.cat(_texture(off / deviation.clamp_min(1e-300)), 1)


def _texture(x: Tensor) -> list[Tensor]:
    """Return the noise, the third and fourth moment, the extremes, and the deviation in octaves.

    Each is (B, C); quantities that span decades are logarithms.
    """
    off = x - x.mean((2, 3), keepdim=True)
    z = (off / (_rms(off)[..., None, None] + _TINY)).flatten(2)
    # The second difference along a diagonal leaves the noise of pixels, and nothing that is smooth.
    edge = (x[..., 1:, 1:] - x[..., :-1, 1:] - x[..., 1:, :-1] + x[..., :-1, :-1]) / 2
    found = [
        _log(edge.abs().flatten(2).median(2).values),
        torch.asinh(z.pow(3).mean(2)),
        _log(z.pow(4).mean(2)),
        _log(z.amax(2)),
        _log(-z.amin(2)),
    ]
    fine = x
    while min(fine.shape[2:]) >= 8:
        coarse = F.avg_pool2d(fine, 2)
        height, width = (2 * n for n in coarse.shape[2:])
        again = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
        found.append(_log(_rms(fine[..., :height, :width] - again)))
        fine = coarse
    return found


@dataclass(frozen=True)
class _Part:
    """The distance of vectors (B, D) from those of the training images.

    Attributes:
        middle: (D,), their mean.
        spread: (D,), the deviation of each number.
        axes: (D, K), orthonormal directions of (vector - middle) / spread.
        variance: (K + 1,), the variance along each axis, and, last, that of the rest.
        limit: what `SHARE` of the validation images stay below.
    """

    middle: Tensor
    spread: Tensor
    axes: Tensor
    variance: Tensor
    limit: float = 1.0

    def __post_init__(self) -> None:
        width, count = self.axes.shape
        shapes = [tuple(t.shape) for t in (self.middle, self.spread, self.variance)]
        if shapes != [(width,), (width,), (count + 1,)]:
            raise ValueError("likeness: its tensors do not fit together")

    @classmethod
    def of(cls, values: Tensor) -> _Part:
        """Return the distance from these vectors (N, D)."""
        values = values.double()
        middle, spread = values.mean(0), values.std(0).clamp_min(_TINY)
        z = (values - middle) / spread
        variance, axes = torch.linalg.eigh(z.T @ z / len(z))
        floor = _FLOOR * variance.mean().clamp_min(_TINY)
        kept = min(_AXES, len(variance))
        beyond = variance[:-kept].mean() if kept < len(variance) else variance.new_ones(())
        own = torch.cat([variance[-kept:].clamp_min(0), beyond[None].clamp_min(0)]) + floor
        middle, spread, axes, own = (t.float() for t in (middle, spread, axes[:, -kept:], own))
        return cls(middle, spread, axes.contiguous(), own)

    def distance(self, values: Tensor) -> Tensor:
        """Return the distance of each vector, (B,) float64; infinity for what is not a number."""
        if values.shape[1] != len(self.middle):
            return values.new_full(values.shape[:1], torch.inf, dtype=torch.float64)
        z = (values.double() - self.middle.double()) / self.spread.double()
        along = z @ self.axes.double()
        beyond = (z.square().sum(1) - along.square().sum(1)).clamp_min(0)
        variance = self.variance.double()
        square = (along.square() / variance[:-1]).sum(1) + beyond / variance[-1]
        return torch.where(square.isfinite(), square.sqrt(), torch.inf) / self.limit


@dataclass(frozen=True)
class Likeness:
    """The comparison of images with the training images.

    Attributes:
        parts: the distances of the vectors, by their names.
        images: how many images were compared with (`train`), and how many set the limit (`val`).
        limit: what `SHARE` of the validation images stay below, of the largest distance.
    """

    parts: Mapping[str, _Part]
    images: Mapping[str, int]
    limit: float = 1.0

    def unlike(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Return how unlike the training images each image is, (B,) float32: above 1, it is."""
        known = self.parts.keys() & vectors.keys()
        each = [self.parts[name].distance(vectors[name]) for name in sorted(known)]
        return (torch.stack(each).amax(0) / self.limit).float()

    def state(self) -> dict[str, Any]:
        """Return the JSON part of the state for `from_state`."""
        limits = {name: part.limit for name, part in self.parts.items()}
        return {"share": SHARE, "images": dict(self.images), "limit": self.limit, "parts": limits}

    def tensors(self) -> dict[str, Tensor]:
        """Return the other part of the state, by names that begin with `LIKENESS`."""
        return {
            f"{LIKENESS}{name}.{key}": getattr(part, key)
            for name, part in self.parts.items()
            for key in ("middle", "spread", "axes", "variance")
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]
    ) -> Likeness | None:
        """Rebuild from `state()` and an export's tensors; None for exports without it.

        Raises:
            ValueError: they do not fit together.
        """
        if not state:
            return None
        try:
            parts = {
                str(name): _Part(**under(f"{LIKENESS}{name}.", tensors), limit=float(limit))
                for name, limit in state["parts"].items()
            }
            return cls(parts, dict(state["images"]), float(state["limit"]))
        except (AttributeError, LookupError, TypeError, ValueError) as e:
            raise ValueError(f"likeness cannot be used: {str(e)[:200]}") from e


def fit(
    layers: Sequence[nn.Module],
    network: nn.Module,
    run: Callable[[nn.Module, Batch], Any],
    train: Iterator[Batch],
    val: Iterator[Batch],
) -> Likeness | None:
    """Learn what training images are like.

    Args:
        layers: those of the network whose input describes an image.
        network: in eval mode.
        run: calls the network once for the images of a batch, in their order.
        train, val: batches of some images of training and of validation.

    Returns:
        None if the network was not called so, or if validation has too few images.
    """

    @torch.no_grad()
    def vectors(batches: Iterator[Batch]) -> dict[str, Tensor] | None:
        count, images = 0, list[Tensor]()
        with watched(network, layers) as record:
            for batch in batches:
                run(network, batch)
                count += len(batch["sample"])
                if "image" in batch:  # slow preprocessing, done once, leaves the network's input
                    images.append(image_numbers(batch["image"], good_pixels(batch)))
        found = record.vectors(count)
        return {**found, "image": torch.cat(images)} if found and images else found

    known, held = vectors(train), vectors(val)
    if known is None or held is None or len(held["input"]) < _LEAST:
        return None
    parts = {}
    for name in sorted(known.keys() & held.keys()):  # a stream has images that a prepared set lacks
        part = _Part.of(known[name])
        parts[name] = replace(part, limit=_limit(part.distance(held[name])))
    found = Likeness(parts, {"train": len(known["input"]), "val": len(held["input"])})
    return replace(found, limit=_limit(found.unlike(held)))


def some(count: int, most: int = IMAGES) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Return at most `most` places of `count`, at equal distances, in batches."""
    places = np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
    return [places[i : i + _BATCH] for i in range(0, len(places), _BATCH)]


def _limit(values: Tensor) -> float:
    most = float(torch.quantile(values.double(), SHARE))
    return max(most * (1 + _FEW / len(values)), _TINY)


def _log(values: Tensor) -> Tensor:
    return (values.clamp_min(0) + _TINY).log()


def _rms(values: Tensor) -> Tensor:
    return values.square().mean((2, 3)).sqrt()
