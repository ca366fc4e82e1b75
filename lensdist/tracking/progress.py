"""Show a run's progress: a live display on a terminal, log lines elsewhere.

Log lines (a file, a SLURM log) come some seconds apart, so that a week of training does not write a
gigabyte. Only the main process calls this, at log intervals.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, TextIO

from lensdist.utils.text import duration

if TYPE_CHECKING:
    from lensdist.tracking.terminal import Display

log = logging.getLogger(__name__)

_LIVE_S, _LINES_S = 0.1, 10.0  # s between two updates
_FORMATS = {
    "epoch": "epoch {:6.2f}",
    "images_per_s": "{:8,.0f} img/s",
    "loss": "loss {:<9.4g}",
    "lr": "lr {:<8.2e}",
    "grad_norm": "grad {:<8.3g}",
    "memory_gb": "mem {:5.1f} GB",
    "mfu": "mfu {:4.0%}",
    "data_wait": "data {:4.0%}",
}


class _Mark(NamedTuple):
    wall: float  # s
    busy: float  # s, without the time in `paused`
    step: int
    images: int


class Progress:
    """The speed and the progress of a run.

    Args:
        total: steps of the whole run.
        step: the step it starts from: more than 0 after a resume.
        images: images seen until then.
        stream: the terminal, if it is one; by default standard error.
        clock: returns seconds that never decrease.
        window: updates over which the speed is measured.
    """

    def __init__(
        self,
        total: int,
        *,
        step: int = 0,
        images: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        window: int = 20,
    ) -> None:
        self._total, self._clock = total, clock
        self._stream = sys.stderr if stream is None else stream
        self._idle = 0.0
        self._next = clock()
        self._display: Display | None = None
        self._marks: deque[_Mark] = deque(maxlen=window + 1)
        self._marks.append(_Mark(clock(), clock(), step, images))

    @property
    def images_per_s(self) -> float | None:
        """Images per second of training over the window; None before the first update."""
        first, last = self._marks[0], self._marks[-1]
        seconds = last.busy - first.busy
        return (last.images - first.images) / seconds if seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at the window's speed, with evaluations; None before the first update."""
        first, last = self._marks[0], self._marks[-1]
        if last.step <= first.step:
            return None
        return (self._total - last.step) * (last.wall - first.wall) / (last.step - first.step)

    def mark(self, step: int, images: int) -> float:
        """Record the steps and images so far; return seconds of training since the last call."""
        now, before = self._clock(), self._marks[-1].busy
        self._marks.append(_Mark(now, now - self._idle, step, images))
        return self._marks[-1].busy - before

    def show(self, figures: Mapping[str, float | None]) -> None:
        """Show the position, with figures by their names in metrics.jsonl; None is left out."""
        now, step = self._marks[-1].wall, self._marks[-1].step
        if now < self._next and step < self._total:
            return
        live = self._is_live()
        self._next = now + (_LIVE_S if live else _LINES_S)
        parts = [f"step {step:>{len(str(self._total))}}/{self._total} {self._share(step):4.0%}"]
        left = self.seconds_left
        if left is not None:
            parts.append(f"left {duration(left):>8}")
        parts += [
            form.format(value)
            for name, form in _FORMATS.items()
            if (value := figures.get(name)) is not None
        ]
        if not live:
            log.info("  ".join(parts).rstrip())
            return
        if self._display is None:
            from lensdist.tracking.terminal import Display  # imports rich

            self._display = Display(self._stream)
        self._display.update(self._share(step), parts)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside (an evaluation, a save) from the images per second."""
        began = self._clock()
        try:
            yield
        finally:
            self._idle += self._clock() - began

    def close(self) -> None:
        """End the live display; its last content stays."""
        if self._display is not None:
            self._display.close()
            self._display = None

    def _share(self, step: int) -> float:
        return step / max(self._total, 1)

    def _is_live(self) -> bool:
        # A "dumb" terminal (Emacs, some CI) cannot move its cursor.
        capable = os.environ.get("TERM") not in ("dumb", "unknown")
        return self._stream.isatty() and capable and log.isEnabledFor(logging.INFO)
