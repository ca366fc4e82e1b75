"""A stopwatch for any training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Turn = Callable[["Watch"], object]
"""Trains from the beginning, and reports every batch to the watch, until it has seen enough."""


class Watch:
    """A stopwatch for windows of steps and the waits for data in them; it keeps all losses.

    A window begins and ends when a batch is ready and the device has done all earlier work: it
    holds the fetching of as many batches as it has steps, and everything a loop does at a step.

    Args:
        skip: warm-up steps before the first window.
        steps: of a window.
        device: where the loop trains.
        windows: their number, one after the other.
        calls: batches per step, if gradients are accumulated.
    """

    def __init__(
        self, skip: int, steps: int, device: torch.device, windows: int = 1, calls: int = 1
    ) -> None:
        self.skip, self.steps, self.windows = skip, steps, windows
        self.last = skip + windows * steps
        self.device = device
        self.losses: list[Tensor] = []
        self.seconds_each: list[float] = []
        self.cpu_each: list[float] = []
        """Seconds of the process on a core: other processes affect them only through the caches."""
        self.waited_each: list[float] = []
        self._calls, self._seen = calls, 0
        self._start, self._cpu, self._waited = 0.0, 0.0, 0.0
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def seconds(self) -> float:
        """The time of all windows."""
        return sum(self.seconds_each)

    def begin(self) -> None:
        """Record that a batch was fetched. The batch after the last step ends the time."""
        step, call = divmod(self._seen, self._calls)
        if call == 0 and self.skip <= step <= self.last and (step - self.skip) % self.steps == 0:
            self._mark(step)
        self._seen += 1

    def _mark(self, step: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self._waited += sum(a.elapsed_time(b) for a, b in self._marks) / 1e3
            self._marks.clear()
        now, cpu = time.perf_counter(), time.process_time()
        if step > self.skip:
            self.seconds_each.append(now - self._start)
            self.cpu_each.append(cpu - self._cpu)
            self.waited_each.append(self._waited)
        self._start, self._cpu, self._waited = now, cpu, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as fetching a batch.

        On a GPU the time is the device's own, between events before and after: its copies and
        gathers, and its idle time for lack of a batch. The host's work while the device is busy
        with earlier steps does not count.
        """
        if self.device.type != "cuda":
            start = time.perf_counter()
            yield
            self._waited += time.perf_counter() - start
            return
        before, after = _event(), _event()
        before.record()
        yield
        after.record()
        self._marks.append((before, after))

    def over(self, loader: Iterable[T]) -> Iterator[T]:
        """Yield the loader's batches repeatedly, until there were enough."""
        for batch in chain.from_iterable(repeat(loader)):
            self.begin()
            if self._seen > self.last:
                return
            yield batch

    def step_losses(self) -> Tensor:
        """Return the mean loss of each step so far, whole steps only: float32, on the CPU."""
        found = torch.stack(self.losses).float().cpu()
        whole = len(found) // self._calls
        return found[: whole * self._calls].view(whole, self._calls).mean(1)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
