"""The progress line: step, epoch, images a second, time left, loss and learning rate.

On a terminal it is one line that rewrites itself; elsewhere (a file, a SLURM log) aligned lines
some seconds apart, so that a week of training does not write a gigabyte. Called at log intervals
only, on rank 0; the other ranks pass `enabled=False`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, TextIO


class _Mark(NamedTuple):
    wall: float  # s
    busy: float  # s, without what `paused` covered
    step: int
    images: int


class Progress:
    """Shows how far a run is.

    Args:
        total: steps of the whole run.
        step: where it starts: more than 0 on resume.
        images: images seen until then.
        stream: where to write; standard error by default, so that standard output stays data.
        clock: seconds from anywhere, never backwards.
        every: seconds between lines where `stream` is not a terminal.
        window: updates that the rate is measured over.
        enabled: False makes every method do nothing but keep `images_per_s`.
    """

    def __init__(
        self,
        total: int,
        *,
        step: int = 0,
        images: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        every: float = 10.0,
        window: int = 20,
        enabled: bool = True,
    ) -> None:
        self._total, self._clock, self._every = total, clock, every
        self._stream = sys.stderr if stream is None else stream
        self._enabled = enabled
        # A "dumb" terminal (Emacs, some CI) takes no carriage returns.
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._idle = 0.0
        self._next = clock()
        self._shown = False
        self._line = ""
        self._marks: deque[_Mark] = deque(maxlen=window + 1)
        self._marks.append(_Mark(clock(), clock(), step, images))

    @property
    def images_per_s(self) -> float | None:
        """Images a second of training over the window; None before the first update."""
        first, last = self._marks[0], self._marks[-1]
        seconds = last.busy - first.busy
        return (last.images - first.images) / seconds if seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """At the window's pace, evaluations and saves included; None before the first update."""
        first, last = self._marks[0], self._marks[-1]
        if last.step <= first.step:
            return None
        return (self._total - last.step) * (last.wall - first.wall) / (last.step - first.step)

    def update(
        self,
        step: int,
        images: int,
        *,
        epoch: float | None = None,
        loss: float | None = None,
        lr: float | None = None,
        **more: float,
    ) -> None:
        """Say where the run is.

        Args:
            step: steps done.
            images: images seen since the run began.
            epoch: passes over the data, with its fraction.
            loss: of the last interval.
            lr: the learning rate.
            more: other numbers to show, by name.
        """
        now = self._clock()
        self._marks.append(_Mark(now, now - self._idle, step, images))
        done = step >= self._total
        if not self._enabled or not (self._live or now >= self._next or done):
            return
        self._next = now + self._every
        width = len(str(self._total))
        parts = [f"step {step:>{width}}/{self._total} {step / max(self._total, 1):4.0%}"]
        if epoch is not None:
            parts.append(f"epoch {epoch:6.2f}")
        rate, left = self.images_per_s, self.seconds_left
        parts.append(f"{rate:8,.0f} img/s" if rate is not None else " " * 14)
        parts.append(f"left {_duration(left):>8}" if left is not None else " " * 13)
        if loss is not None:
            parts.append(f"loss {loss:<9.4g}")
        if lr is not None:
            parts.append(f"lr {lr:<8.2e}")
        parts += [f"{name} {value:<8.4g}" for name, value in more.items()]
        self._show("  ".join(parts).rstrip())

    def note(self, text: str) -> None:
        """Print a line that stays, such as `saved step 500`, above the live one."""
        if not self._enabled:
            return
        if self._shown:
            self._write("\r\x1b[K")
        self._write(text + "\n")
        if self._shown:
            self._write(self._line)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens inside (an evaluation, a save) out of the images a second."""
        began = self._clock()
        try:
            yield
        finally:
            self._idle += self._clock() - began

    def close(self) -> None:
        """End the live line, so that what is printed next starts on its own."""
        if self._shown:
            self._write("\n")
        self._shown = False

    def _show(self, line: str) -> None:
        if self._live:
            # Cut to the terminal: a line that wraps cannot be rewritten and fills the screen.
            self._line = line[: shutil.get_terminal_size().columns - 1]
            self._shown = True
            self._write(f"\r{self._line}\x1b[K")
        else:
            self._write(line + "\n")

    def _write(self, text: str) -> None:
        # A closed pipe (`| head`) or a full disk must not stop a run for the sake of its display.
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._enabled = self._shown = False


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return f"{days}d {h:02d}h" if days else f"{h}:{m:02d}:{s:02d}"
