"""Instruments that measure a run: on its task, its source, its saver and its logger."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from copy import copy, deepcopy
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.harness.watch import Watch
from lensdist.config.schema import BaseRun
from lensdist.data.dataset import Batch
from lensdist.data.sampler import Images, PackedSource
from lensdist.data.stream import StreamSource
from lensdist.distributed.context import DistributedContext
from lensdist.tasks.registry import AnyTask
from lensdist.training.async_saver import Saver
from lensdist.training.run_logger import RunLogger

Judge = Callable[[int, float, dict[str, Any]], None]
"""Called at each evaluation with the step, the seconds of training so far, and the scores."""


def watched(task: AnyTask, network: nn.Module, watch: Watch) -> AnyTask:
    """Return a task that reports each micro-batch to the watch and starts with a copy of a network.

    The loop uses an instance, so attributes set there reach it, whatever the task's class.
    """

    def loss(model: nn.Module, batch: Batch, key: int) -> Tensor:
        watch.begin()
        value = task.loss(model, batch, key)
        watch.losses.append(value.detach())
        return value

    told = copy(task)
    vars(told).update(loss=loss, build=partial(deepcopy, network))
    return told


class TimedSet(PackedSource):
    """A packed source that reports to a watch how long its batches took to fetch."""

    watch: Watch

    def take(self, epoch: int, offset: int, n: int) -> Batch:
        with self.watch.waiting():
            return super().take(epoch, offset, n)


class TimedStream(StreamSource):
    """A source of simulated images that reports to a watch how long they took to simulate."""

    watch: Watch

    def take(self, epoch: int, offset: int, n: int) -> Batch:
        with self.watch.waiting():
            return super().take(epoch, offset, n)


Timed = TimedSet | TimedStream


class Few:
    """The first images of a split."""

    def __init__(self, view: Images, n: int) -> None:
        self._view, self._n = view, min(n, len(view))

    def __len__(self) -> int:
        return self._n

    def name_of(self, sample: int) -> str:
        return self._view.name_of(sample)

    def gather(self, places: npt.NDArray[np.int64]) -> Batch:
        return self._view.gather(places)


class CountingSaver(Saver):
    """A saver that records how long each save stalled training, and can repeat the last one."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.stalls: list[float] = []
        self._last: Callable[[], None] | None = None

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        meta: dict[str, Any],
        protect: set[int],
        began: float | None = None,
    ) -> None:
        gathering = 0.0 if began is None else time.perf_counter() - began
        super().save(step, tensors, meta, protect, began)
        self.stalls.append(self.stalled_s)
        self._last = lambda: self.save(
            step, tensors, meta, protect, time.perf_counter() - gathering
        )

    def again(self, times: int) -> None:
        """Save the last state again, when the writer is idle."""
        for _ in range(times):
            self.wait()
            if self._last is not None:
                self._last()


class JudgingLogger(RunLogger):
    """A logger that also counts seconds of training, and passes every evaluation to a judge."""

    def __init__(self, cfg: BaseRun, world: DistributedContext, judge: Judge | None) -> None:
        super().__init__(
            cfg.run.dir,
            cfg.track,
            cfg.model_dump(mode="json"),
            world.device,
            0,
            enabled=world.main,
        )
        self._judge, self._device = judge, world.device
        self._trained, self._since = 0.0, 0.0

    def begin(self, *args: Any, **more: Any) -> None:
        super().begin(*args, **more)
        self._since = self._now()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        self._trained += self._now() - self._since
        with super().aside():
            yield
        self._since = self._now()

    def scores(self, step: int, scores: dict[str, Any], *args: Any, **more: Any) -> None:
        super().scores(step, scores, *args, **more)
        if self._judge is not None:
            self._judge(step, self._trained, scores)

    def _now(self) -> float:
        """Return the time after the device has done its work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
