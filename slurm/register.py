"""The register of the chains that were sent from this machine, so that commands find them anywhere.

It is a file in the user's own state folder, one row for each submission. A chain's state is in its
own folder; nothing but finding it depends on this file.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from pydantic import Field, ValidationError

from lensdist.utils.files import sync
from lensdist.utils.settings import Strict
from slurm import Say
from slurm.config.chain import Chain

STATE = ".submit"
"""Name of the launcher's folder in the folder of the runs."""
COPY = "chain.json"
"""Name of the chain's copy in the launcher's folder."""


class Entry(Strict, extra="ignore"):  # a later version may write more
    """One row: a chain that was sent."""

    name: str = Field(description="the chain's name")
    runs: Path = Field(description="folder of the runs")
    cwd: Path = Field(description="the folder in which it was sent")
    time: float = Field(description="seconds since 1970")
    line: str = Field("", description="the command that sent it")

    @property
    def state(self) -> Path:
        """The launcher's folder."""
        return self.runs / STATE


def register_file() -> Path:
    """Return the register's path; the file need not exist."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "lensdist" / "chains.jsonl"


def register(chain: Chain, runs: Path, line: str, say: Say) -> None:
    """Add a chain that is about to be sent; without a place to write, only say so."""
    entry = Entry(name=chain.name, runs=runs, cwd=Path.cwd(), time=time.time(), line=line)
    file = register_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            # One write of a whole row: two submissions at once do not mix. The leading newline ends
            # a row that a killed process, or a full disk, left unfinished.
            os.write(handle, b"\n" + entry.model_dump_json().encode() + b"\n")
            sync(handle)
        finally:
            os.close(handle)
    except OSError as e:
        say(f"warning: {file}: {e.strerror}; from other folders, give runs={runs} to find it")


def registered(say: Say) -> list[Entry]:
    """Return the newest row of each folder of runs, newest first; say how many rows are damaged."""
    try:
        lines = register_file().read_bytes().splitlines()
    except OSError:
        return []
    newest: dict[Path, Entry] = {}
    damaged = 0
    for line in filter(bytes.strip, lines):
        try:
            entry = Entry.model_validate_json(line)
        except ValidationError:
            damaged += 1
            continue
        newest[entry.runs] = entry
    if damaged:
        say(f"warning: {register_file()}: {damaged} damaged row(s) skipped")
    return sorted(newest.values(), key=lambda entry: -entry.time)
