"""The hours of nodes and GPUs that a phase's attempts have used, from its attempt log.

The log exists at every site; SLURM's accounting does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from slurm.attempts import Event, attempts


@dataclass(frozen=True)
class Used:
    """Hours of nodes, and of GPUs if there were any."""

    nodes: float = 0.0
    gpus: float = 0.0

    def __add__(self, other: Used) -> Used:
        return Used(self.nodes + other.nodes, self.gpus + other.gpus)

    def __str__(self) -> str:
        """Return the hours of GPUs, or else of nodes."""
        hours, unit = (self.gpus, "GPU-h") if self.gpus else (self.nodes, "node-h")
        return f"{hours:.3g} {unit}" if hours else "-"


def used(events: Sequence[Event], gpus: Callable[[Event], int], until: float) -> Used:
    """Return what all attempts of a phase have used, those of earlier submissions too.

    An attempt that was lost counts until the next one starts.

    Args:
        events: the phase's attempt log.
        gpus: number of GPUs on each node of an attempt, from its `started` event.
        until: end of the newest attempt if it has none yet, seconds since 1970.
    """
    found, every = Used(), attempts(events)
    for this, after in zip_longest(every, every[1:]):
        end = this.ended.time if this.ended else after.started.time if after else until
        nodes = max(0.0, end - this.started.time) / 3600 * max(1, len(this.started.nodes))
        found += Used(nodes, nodes * gpus(this.started))
    return found
