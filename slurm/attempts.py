"""What was done for a phase, attempt after attempt: a file that only ever grows.

`.submit/ledger/<phase>.jsonl`, a row an event. One job at a time writes a phase's file, and appends
whole lines, so no lock is needed on file systems that have none.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from lensdist.config.base import Strict
from lensdist.files import sync

What = Literal["sent", "started", "ended", "cancelled"]
Verdict = Literal["done", "requeue", "leave", "stop"]


class Event(Strict):
    """One row."""

    what: What
    time: float = Field(description="seconds since 1970")
    job: str = Field(description="SLURM's id, or the local process's")
    submission: str = Field(description="name of the submission's folder")
    attempt: int = Field(0, description="1, 2, … of the phase; 0 where none has begun")
    nodes: tuple[str, ...] = Field((), description="started: where it runs")
    step: int = Field(0, description="of the newest checkpoint")
    verdict: Verdict | None = Field(None, description="ended: what followed")
    reason: str = Field("", description="ended: why, in a sentence")
    excluded: tuple[str, ...] = Field((), description="ended: nodes not to be used again")
    kind: str = Field("", description="ended: how the worst process did (`lensdist.outcome`)")


class Ledger:
    """The events of one phase.

    Args:
        path: of the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, what: What, job: str, submission: str, **more: object) -> Event:
        """Add an event that happens now, and wait until the disk has it."""
        event = Event.model_validate(
            {"what": what, "time": time.time(), "job": job, "submission": submission, **more}
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            # A leading newline ends the line that a lost life may have left torn.
            os.write(handle, b"\n" + event.model_dump_json(exclude_defaults=True).encode() + b"\n")
            sync(handle)
        finally:
            os.close(handle)
        return event

    def events(self) -> list[Event]:
        """All of them, oldest first; what is torn is passed over."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValidationError):
                if line:
                    found.append(Event.model_validate_json(line))
        return found


class Attempt(Strict):
    """A start of a phase and, where it is known, its end."""

    started: Event
    ended: Event | None


def attempts(events: Sequence[Event]) -> list[Attempt]:
    """Each start with its end; without one the node was lost, or it still runs."""
    found: list[Attempt] = []
    for event in events:
        if event.what == "started":
            found.append(Attempt(started=event, ended=None))
        elif event.what == "ended" and found and found[-1].started.attempt == event.attempt:
            found[-1] = Attempt(started=found[-1].started, ended=event)
    return found
