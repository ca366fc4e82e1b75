"""Asking a run to save and leave: a signal, or a file named STOP in its folder.

A handler only sets a flag; at the end of a step all processes agree, save at that one step and
leave with exit code 75. SIGUSR2 is what `sbatch --signal` is told to send (NCCL uses SIGUSR1),
SIGTERM is preemption and scancel, SIGINT is a person, whose second Ctrl-C ends the process at once.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType

from lensdist.engine.world import World

STOP = "STOP"
"""The file, in a run's folder. It stays: a run does not start while it is there."""


class Stopper:
    """Watches for a wish to stop. Handlers may be called several times; some launchers do.

    Args:
        run_dir: where a file named STOP is a wish.
        world: the processes, which must agree.
        every: seconds between looks for the file, which on a network cost more than a step.
    """

    def __init__(self, run_dir: Path, world: World, every: float = 1.0) -> None:
        self._file = run_dir / STOP
        self._every = every
        self._next_look = 0.0
        self._world = world
        self._reason: str | None = None
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._reason = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def asked(self) -> str | None:
        """Why this process wants to stop, if it does."""
        if self._reason is None and self._world.main and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + self._every
            if self._file.exists():
                self._reason = "STOP file"
        return self._reason

    def agreed(self) -> bool:
        """Whether any process wants to stop: the same answer on all, at the same step."""
        return self._world.any(self.asked() is not None)
