"""Following a run's steps without a word of the loop's: what it calls is wrapped for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from lensdist.data.sampler import PackedSource
from lensdist.data.stream import StreamSource
from lensdist.engine.feature_cache import CachedSource
from lensdist.engine.parallel.base import Engine
from lensdist.tasks.classification import ClassificationTask
from lensdist.tasks.mae import MaeTask
from lensdist.tasks.super_resolution import SuperResolutionTask

WARM_UP = 5
"""Steps that do not count: kernels are chosen and compiled, memory is taken."""

_STEP = "optimizer"
# Part of a step -> what the loop calls for it.
_PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "data": ((PackedSource, "take"), (StreamSource, "take"), (CachedSource, "take")),
    "forward": ((MaeTask, "loss"), (ClassificationTask, "loss"), (SuperResolutionTask, "loss")),
    "backward": ((torch.autograd, "backward"),),
    _STEP: ((Engine, "step"),),
}


class Done(Exception):
    """Enough steps were watched; raised in the loop, which ends without a checkpoint."""


class Watch:
    """Watches the first steps of a run, in four stretches.

    `WARM_UP` steps do not count; `steps` are timed as they are; `steps` are timed part by part, for
    which the device must be waited for, so that each part's time is its own; and `steps`, behind
    one in which the profiler gets ready, are traced.

    Args:
        steps: of each stretch.
        device: of the run.
        trace: whether this process traces.
    """

    def __init__(self, steps: int, device: torch.device, *, trace: bool) -> None:
        self.steps = steps
        self.needed = WARM_UP + 3 * steps + 1
        """Steps that a run must have."""
        self.step_s = 0.0
        """Seconds a step takes."""
        self.parts_step_s = 0.0
        """Seconds a step takes whose parts wait for each other."""
        self.parts_s = dict.fromkeys(_PARTS, 0.0)
        """Seconds of each part in one of those."""
        self.profiler: profile | None = None
        self._device = device
        self._done = 0
        self._began = 0.0
        if trace:
            activities = [ProfilerActivity.CPU]
            if device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            untraced = WARM_UP + 2 * steps
            when = schedule(skip_first=untraced, wait=0, warmup=1, active=steps, repeat=1)
            self.profiler = profile(activities=activities, schedule=when, acc_events=True)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Wrap what the loop calls; runs inside raise `Done`."""
        with ExitStack() as stack:
            for part, places in _PARTS.items():
                for owner, name in places:
                    original = getattr(owner, name)
                    setattr(owner, name, self._around(part, original))
                    stack.callback(setattr, owner, name, original)
            if self.profiler is not None:
                stack.enter_context(self.profiler)
            yield

    def _around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            timed = WARM_UP + self.steps <= self._done < WARM_UP + 2 * self.steps
            began = self._now() if timed else 0.0
            with record_function(part):  # a range in the trace
                result = function(*args, **kwargs)
            if timed:
                self.parts_s[part] += (self._now() - began) / self.steps
            if part == _STEP:
                self._next()
            return result

        return wrapped

    def _next(self) -> None:
        self._done += 1
        if self._done == WARM_UP:
            self._began = self._now()
        elif self._done == WARM_UP + self.steps:
            now = self._now()
            self.step_s, self._began = (now - self._began) / self.steps, now
        elif self._done == WARM_UP + 2 * self.steps:
            self.parts_step_s = (self._now() - self._began) / self.steps
        if self.profiler is not None:
            self.profiler.step()
        if self._done == self.needed:
            raise Done

    def _now(self) -> float:
        """Seconds, once the device has done all that it was told."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
