"""Let ways to train take turns: first to show that they do the same work, then to be timed.

Within a round each has its turn, every other time in reverse, so that a machine that is busy for a
while slows all of them. So ratios are taken within a round, and their median is reported.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from benchmarks.harness.hardware import forget_peak, peak_bytes
from benchmarks.harness.watch import Turn, Watch
from lensdist.utils.errors import RunError

T = TypeVar("T")
PARITY_STEPS = 4


class Timed(NamedTuple):
    """The result of a timed window."""

    rate: float
    """Images per second, over all processes."""
    cpu_rate: float
    """Images per second of this process's time on a core."""
    peak: int | None
    """Peak bytes in use on a GPU, without those in use before, such as resident images."""


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        turn: trains from the beginning.
        batch: images a step, over all processes.
        calls: micro-batches of a step that this process computes.
    """

    turn: Turn
    batch: int
    calls: int = 1

    def losses(self, steps: int, device: torch.device) -> Tensor:
        """Return the losses of the first steps."""
        watch = Watch(0, steps, device, calls=self.calls)
        self.turn(watch)
        return watch.step_losses()[:steps]

    def timed(self, skip: int, steps: int, device: torch.device) -> Timed:
        """Train from the beginning, and time a window of steps."""
        cuda = device.type == "cuda"
        forget_peak(device)
        before = torch.cuda.memory_allocated(device) if cuda else 0
        watch = Watch(skip, steps, device, calls=self.calls)
        self.turn(watch)
        peak = peak_bytes(device)[0] - before if cuda else None
        images = steps * self.batch
        return Timed(images / watch.seconds, images / sum(watch.cpu_each), peak)


@dataclass(frozen=True)
class Tolerance:
    """The tolerated relative difference of losses: of the first step's, and of all.

    The first depends only on the weights; for later ones, Adam amplifies the rounding of gradients
    near zero.
    """

    first: float
    all: float

    def refuse(self, name: str, found: Tensor, wanted: Tensor) -> float:
        """Return the largest difference.

        Raises:
            RunError: it is larger than rounding.
        """
        apart = (found / wanted - 1).abs()
        if apart[0] <= self.first and apart.max() <= self.all:
            return float(apart.max())
        shown = (", ".join(f"{x:.6g}" for x in losses.tolist()) for losses in (found, wanted))
        raise RunError(
            f"{name}: its first losses are {next(shown)}, but lensdist's are {next(shown)}; it "
            "does not do the same work, so no speeds are compared"
        )


ROUNDING = Tolerance(1e-5, 1e-4)
"""The reference MAE's is 1e-7; at `debug`'s size a rate that is 1 % off gives more than 1e-4."""
BATCHNORM = Tolerance(1e-4, 2e-3)
"""Other layouts give up to 5e-4 for a DenseNet, one and a half times the rate 2.5e-3."""


def gate(
    ways: Mapping[str, Way],
    base: Way,
    device: torch.device,
    tolerance: Tolerance,
    steps: int = PARITY_STEPS,
) -> dict[str, float]:
    """Return the largest relative difference of each way's first losses from the base's.

    Args:
        ways: compared with the base.
        base: lensdist.
        device: where they train.
        tolerance: allowed for rounding.
        steps: compared steps; the first alone does not test the optimizer.

    Raises:
        RunError: one is larger than rounding.
    """
    wanted = base.losses(steps, device)
    return {
        name: tolerance.refuse(name, way.losses(steps, device), wanted)
        for name, way in ways.items()
    }


def take_turns(
    turns: Mapping[str, Callable[[], T]], rounds: int, warm: int = 0
) -> dict[str, list[T]]:
    """Return the result of each turn, one per round.

    Args:
        turns: the turns by name.
        rounds: that count.
        warm: rounds before them that do not count: they start workers and warm up caches.
    """
    found: dict[str, list[T]] = {name: [] for name in turns}
    for i in range(warm + rounds):
        for name in list(turns) if i % 2 else reversed(list(turns)):
            found[name].append(turns[name]())
    return {name: each[warm:] for name, each in found.items()}


def compare(
    ways: Mapping[str, Way], device: torch.device, *, skip: int, steps: int, rounds: int
) -> list[dict[str, Any]]:
    """Time all ways in turns, and return a row for each with the first way's ratio to it.

    Returns:
        `way`, `batch`, `images_per_s` (median over rounds) and its smallest and largest value
        `images_per_s_spread`, all of them `images_per_s_each`; `first_over`, the median over rounds
        of the first way's rate over this one's, and its spread; on a GPU `peak_gb`, on a CPU
        `cpu_first_over`, the same ratio of the time on a core.
    """
    turns = {name: partial(way.timed, skip, steps, device) for name, way in ways.items()}
    found = take_turns(turns, rounds)
    first = next(iter(found.values()))
    rows = []
    for name, each in found.items():
        pairs = list(zip(first, each, strict=True))
        row: dict[str, Any] = {"way": name, "batch": ways[name].batch}
        row |= spread("images_per_s", [one.rate for one in each])
        row |= spread("first_over", [ours.rate / theirs.rate for ours, theirs in pairs])
        if device.type == "cpu":
            over = [ours.cpu_rate / theirs.cpu_rate for ours, theirs in pairs]
            row |= spread("cpu_first_over", over)
        peaks = [one.peak for one in each if one.peak is not None]
        rows.append(row | ({"peak_gb": max(peaks) / 1e9} if peaks else {}))
    return rows


def spread(name: str, each: list[float]) -> dict[str, Any]:
    """Return the median, the smallest and the largest, and all values, under keys of a name."""
    ends = (min(each), max(each))
    return {name: statistics.median(each), f"{name}_spread": ends, f"{name}_each": each}


def over(name: str, some: list[float], others: list[float]) -> dict[str, Any]:
    """Return the ratio of two ways within each round, as `spread` does."""
    return spread(name, [a / b for a, b in zip(some, others, strict=True)])
