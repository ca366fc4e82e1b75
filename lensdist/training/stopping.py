"""Stop conditions: signals, a STOP file in the run's folder, and the job's time limit.

A handler only sets a flag. At the end of a step all processes agree, save, and exit with code 75.
`utils/signals.py` lists the signals. A second Ctrl-C ends the process at once.
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
"""The file's name, in a run's folder. A run does not start while the file is there."""
RESERVE = 10.0
"""Seconds kept for what is not measured: to tell the other processes, and to end them."""


def job_ends(environment: Mapping[str, str]) -> float | None:
    """Return when this job will be killed, on `time.monotonic`'s clock; None if unknown.

    A node's wall clock may be corrected while a run trains; this clock is not.

    Raises:
        UserError: the variable is not a time.
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
    """The latest time at which a run can save before its job is killed.

    It is near once the next check could come too late, if the next step and save take as long as
    the slowest so far.

    Args:
        at: time at which the job is killed, on `clock`.
        save_s: returns the seconds that a save started now may take.
        clock: returns seconds.
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
        """Return whether it is time to save and exit; call once per step."""
        now = self._clock()
        if self._last is not None:
            self._slowest = max(self._slowest, now - self._last)
        self._last = now
        return now + self._slowest + self._save_s() + RESERVE >= self._at

    def pause(self) -> None:
        """Exclude the time until the next check, which is not that of a step."""
        self._last = None


class Stopper:
    """The stop conditions of a run. Handlers may be called several times; some launchers do.

    Attributes:
        deadline: the job's, if known. Only the main process checks it.

    Args:
        run_dir: folder that is checked for a STOP file.
        world: the processes, which must agree.
        every: seconds between checks for the file, which on a network cost more than a step.
    """

    def __init__(self, run_dir: Path, world: DistributedContext, every: float = 1.0) -> None:
        self._file = run_dir / STOP
        self._every = every
        self._next_look = 0.0
        self._world = world
        self._reason = signals.heard()  # a signal that came before, while a library was busy
        self.deadline: Deadline | None = None
        signals.listen(self._hear)

    def _hear(self, number: int, name: str) -> None:
        self._reason = self._reason or name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun turns a second Ctrl-C into SIGTERM
                signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def asked(self) -> str | None:
        """Return the reason why this process should stop, if there is one."""
        if self._reason is None and self._world.main:
            if time.monotonic() >= self._next_look:
                self._next_look = time.monotonic() + self._every
                if self._file.exists():
                    self._reason = "STOP file"
            if self._reason is None and self.deadline is not None and self.deadline.near():
                self._reason = "the job's time limit"
        return self._reason

    def begin_stage(self) -> None:
        """Exclude the preparation of a stage's first step, which happens once, from the step times.

        If it counted as a step (cached features, choice of kernels), a run would stop much too
        early.
        """
        if self.deadline is not None:
            self.deadline.pause()

    def agreed(self) -> bool:
        """Return whether any process should stop: the same answer on all, at the same step."""
        return self._world.any(self.asked() is not None)
