"""Time the steps of a run from outside, by temporarily wrapping the functions that the loop calls.

Only the loop's own interfaces are used: any task, source and engine can be timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from lensdist.runs import phase
from lensdist.training import loop
from lensdist.training.stages import Phase

WARM_UP = 5
"""Steps that do not count: kernels are chosen and compiled, and memory is allocated."""

PARTS = ("data", "forward", "backward", "optimizer")
"""The parts of a step, in order."""


class Done(Exception):
    """The end of the last watched step; raised in the loop, which stops without a checkpoint."""


class Watch:
    """The times of the first steps of a run, in four stretches.

    `WARM_UP` steps do not count; `steps` are timed as they are; `steps` are timed part by part,
    with the device synchronised, so that each part's time is its own; and `steps` are traced, after
    one in which the profiler starts.

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
        """Seconds per step."""
        self.parts_step_s = 0.0
        """Seconds per step whose parts wait for each other."""
        self.parts_s = dict.fromkeys(PARTS, 0.0)
        """Seconds of each part in one of those steps."""
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
        """Watch the runs inside, each of which raises `Done`."""
        # Where the loop is called, where it builds its strategy, and where it enters a stage.
        seams = ((phase, "train"), (loop, "build_strategy"), (loop, "enter"))
        train, build_strategy, enter = (getattr(module, name) for module, name in seams)

        def watched_train(what: Phase, *args: Any) -> Any:
            self._wrap(what.task, "loss", "forward")
            return train(what, *args)

        def watched_engine(*args: Any) -> Any:
            engine = build_strategy(*args)
            self._wrap(engine, "backward", "backward")
            self._wrap(engine, "step", "optimizer")
            return engine

        def watched_enter(*args: Any) -> Any:
            entered = enter(*args)
            self._wrap(entered.source, "take", "data")
            return entered

        with ExitStack() as stack:
            watched = (watched_train, watched_engine, watched_enter)
            for (module, name), function in zip(seams, watched, strict=True):
                stack.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, function)
            if self.profiler is not None:
                stack.enter_context(self.profiler)
            yield

    def _wrap(self, owner: object, name: str, part: str) -> None:
        """Wrap one method of one object, once: a source may be entered at several stages."""
        if name not in vars(owner):
            setattr(owner, name, self._around(part, getattr(owner, name)))

    def _around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            timed = WARM_UP + self.steps <= self._done < WARM_UP + 2 * self.steps
            began = self._now() if timed else 0.0
            with record_function(part):  # a range in the trace
                result = function(*args, **kwargs)
            if timed:
                self.parts_s[part] += (self._now() - began) / self.steps
            if part == "optimizer":
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
        """Return the time in seconds, after the device has done all its work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
