"""Asking a run to save and leave: a signal, a file named STOP in its folder, the job's time limit.

A handler only sets a flag; at the end of a step all processes agree, save at that one step and
leave with exit code 75. `utils/signals.py` lists the signals. A second Ctrl-C ends the
process at once.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from lensdist.distributed.context import DistributedContext
from lensdist.utils import signals
from lensdist.utils.errors import UserError
from lensdist.utils.launched import DEADLINE

STOP = "STOP"
"""The file, in a run's folder. It stays: a run does not start while it is there."""
RESERVE = 10.0
"""Seconds kept for what nobody measures: to tell the others, to take the processes down."""


def job_ends(environment: Mapping[str, str]) -> float | None:
    """When this job will be killed, on `time.monotonic`'s clock; None: nobody has said.

    That clock, because a node's wall clock may be set right while a run trains.

    Raises:
        UserError: the variable is no time.
    """
    text = environment.get(DEADLINE)
    if not text:
        return None
    try:
        at = float(text)
    except ValueError:
        at = math.nan
    if not math.isfinite(at):
        raise UserError(
            f"{DEADLINE} is {text!r}; give seconds since 1970, as `date +%s` prints, or unset it"
        )
    return time.monotonic() + at - time.time()


class Deadline:
    """Knows when a run must leave, to have saved when its job is killed.

    That is: once the next look could come too late, if it took as long as the slowest so far and
    the save as long as the slowest so far.

    Args:
        at: when the job is killed, on `clock`.
        save_s: seconds that a save asked for now may take.
        clock: seconds.
    """

    def __init__(
        self, at: float, save_s: Callable[[], float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._at = at
        self._save_s = save_s
        self._clock = clock
        self._last: float | None = None
        self._slowest = 0.0

    def near(self) -> bool:
        """Whether it is time to save and leave. To be asked once a step."""
        now = self._clock()
        if self._last is not None:
            self._slowest = max(self._slowest, now - self._last)
        self._last = now
        return now + self._slowest + self._save_s() + RESERVE >= self._at

    def pause(self) -> None:
        """Do not count the time to the next look: it comes once, and says nothing of the next."""
        self._last = None


class Stopper:
    """Watches for a wish to stop. Handlers may be called several times; some launchers do.

    Attributes:
        deadline: of the job, once one is known. Only the main process looks at it.

    Args:
        run_dir: where a file named STOP is a wish.
        world: the processes, which must agree.
        every: seconds between looks for the file, which on a network cost more than a step.
    """

    def __init__(self, run_dir: Path, world: DistributedContext, every: float = 1.0) -> None:
        self._file = run_dir / STOP
        self._every = every
        self._next_look = 0.0
        self._world = world
        self._reason = signals.heard()  # too early, and lost in what a library was doing
        self.deadline: Deadline | None = None
        signals.listen(self._hear)

    def _hear(self, number: int, name: str) -> None:
        self._reason = self._reason or name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun makes SIGTERM of a second Ctrl-C
                signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def asked(self) -> str | None:
        """Why this process wants to stop, if it does."""
        if self._reason is None and self._world.main:
            if time.monotonic() >= self._next_look:
                self._next_look = time.monotonic() + self._every
                if self._file.exists():
                    self._reason = "STOP file"
            if self._reason is None and self.deadline is not None and self.deadline.near():
                self._reason = "the job's time limit"
        return self._reason

    def begin_stage(self) -> None:
        """What leads to a stage's first step (kept features, kernels chosen) comes once in it.

        As a measure of steps it would let a run leave long before it must.
        """
        if self.deadline is not None:
            self.deadline.pause()

    def agreed(self) -> bool:
        """Whether any process wants to stop: the same answer on all, at the same step."""
        return self._world.any(self.asked() is not None)
