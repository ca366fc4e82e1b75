"""The log of a phase's attempts: `.submit/ledger/<phase>.jsonl`, one row an event.

One job at a time appends whole lines, so no lock is needed on file systems that have none. Jobs of
chains that were submitted before read and write the same rows: never rename a key.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from lensdist.utils.files import append_line
from lensdist.utils.settings import Strict

What = Literal["sent", "started", "ended", "cancelled"]
Verdict = Literal["done", "requeue", "leave", "stop"]
_FOLDER = "ledger"
REFUSED = "SLURM refused it: "
"""The beginning of the reason if sbatch took no job."""
UNKNOWN = "?"
"""Id of a job that SLURM may have taken without an answer."""


class Event(Strict):
    """One row."""

    what: What
    time: float = Field(description="seconds since 1970")
    job: str = Field(description="SLURM's job id, or the local process's id")
    submission: str = Field(description="name of the submission's folder")
    log: str = Field("", description="sent: beginning of its logs' names; else the job's id")
    attempt: int = Field(0, description="1, 2, … of the phase; 0 if none has started")
    nodes: tuple[str, ...] = Field((), description="started: the nodes that it uses")
    step: int = Field(0, description="step of the newest checkpoint")
    verdict: Verdict | None = Field(None, description="ended: the next action")
    reason: str = Field("", description="ended: why, in a sentence")
    excluded: tuple[str, ...] = Field((), description="ended: nodes not to use again")
    kind: str = Field(
        "", description="ended: how the worst process ended (`lensdist.utils.outcome`)"
    )


@dataclass(frozen=True)
class AttemptLog:
    """The events of one phase, in a file that need not exist."""

    path: Path

    @classmethod
    def of(cls, state: Path, phase: str) -> AttemptLog:
        """Return a phase's log in the launcher's folder."""
        return cls(state / _FOLDER / f"{phase}.jsonl")

    def append(self, what: What, job: str, submission: str, **more: object) -> Event:
        """Add an event with the current time, and wait until it is on the disk."""
        event = Event.model_validate(
            {"what": what, "time": time.time(), "job": job, "submission": submission, **more}
        )
        state = self.path.parent.parent
        shared = state.exists() and state.stat().st_mode & 0o040
        line = event.model_dump_json(exclude_defaults=True)
        append_line(self.path, line, 0o640 if shared else 0o600)
        return event

    def events(self) -> list[Event]:
        """Return all events, oldest first, without unfinished lines."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in filter(None, lines):
            with contextlib.suppress(ValidationError):
                found.append(Event.model_validate_json(line))
        return found


def phases_sent(state: Path) -> list[str]:
    """Return the names of all phases that have a log, sorted."""
    return sorted(file.stem for file in (state / _FOLDER).glob("*.jsonl"))


def is_cancelled(events: Sequence[Event], submission: str) -> bool:
    """Return whether a submission's phase was cancelled and has not started since."""
    mine = [e.what for e in events if e.submission == submission]
    return [what for what in mine if what in ("started", "cancelled")][-1:] == ["cancelled"]


class Attempt(Strict):
    """A start of a phase and its end; no end is known while it runs, or if its node was lost."""

    started: Event
    ended: Event | None


def attempts(events: Sequence[Event]) -> list[Attempt]:
    """Return each start with its end."""
    found: list[Attempt] = []
    for event in events:
        if event.what == "started":
            found.append(Attempt(started=event, ended=None))
        elif event.what == "ended" and found and found[-1].started.attempt == event.attempt:
            found[-1] = Attempt(started=found[-1].started, ended=event)
    return found
