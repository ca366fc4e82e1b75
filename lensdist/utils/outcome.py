"""Reports of a run's processes to the launcher: ready, and how they ended (torch-free).

Exit codes do not suffice: accelerate's launcher exits with 1 whether one process crashed or all of
them saved and stopped. So where `LENSDIST_OUTCOME` names a folder, every process adds lines to the
file of its node there, and the launcher reads which process ended first, how, and why.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from lensdist.utils.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_REQUEUE,
    MISTAKES,
    Busy,
    RunError,
    UserError,
    process,
    refusal,
    tell,
    tell_error,
)
from lensdist.utils.files import append_line
from lensdist.utils.logs import to_stderr
from lensdist.utils.owners import node_name as node_name
from lensdist.utils.settings import Strict
from lensdist.utils.streams import output_lost, tolerant

FOLDER = "LENSDIST_OUTCOME"
"""The environment variable with the folder of the reports; without it none is written."""
SPARE = "LENSDIST_OUTCOME_SPARE"
"""The environment variable with a folder on the node's own disk, for when the other is full."""
NODE = "LENSDIST_NODE"
"""The environment variable with the number of this process's node, from 0."""

Kind = Literal["done", "saved", "input", "failed", "crashed", "device", "busy"]


class DeviceError(Exception):
    """A fault of this process's device, or of the node's driver; another node may work."""


W = TypeVar("W", bound=Strict)
_OF_CODE: dict[int, Kind] = {EXIT_DONE: "done", EXIT_REQUEUE: "saved", EXIT_BAD_INPUT: "input"}
_FORESEEN: tuple[tuple[type[Exception], Kind, int], ...] = (
    (Busy, "busy", EXIT_BAD_INPUT),  # before UserError, of which it is one
    (UserError, "input", EXIT_BAD_INPUT),
    (RunError, "failed", EXIT_FAILED),
    (DeviceError, "device", EXIT_FAILED),
)
_WHAT, _END = "what", "end"  # the key of a line that tells its kind, and the kind of an `Outcome`
# Errors raised in the peers of a process that has crashed.
_ECHO = re.compile(r"\bDist\w*Error\b|gloo|nccl", re.IGNORECASE)


class Outcome(Strict):
    """The report of how one process ended.

    Attributes:
        kind: done; saved (asked to stop, run again); input (bad configuration or data, exit 2);
            failed (a RunError, exit 1); crashed (any other exception); device (this node did not
            pass its check before the run).
        rank: the rank of the process.
        host: the node's name.
        time: seconds since 1970.
        error: one sentence; empty where nothing is wrong.
        traceback: the traceback of a crash.
        echo: whether it crashed in communication, most likely because a peer crashed first.
    """

    kind: Kind
    rank: int
    host: str
    time: float
    error: str = ""
    traceback: str = ""
    echo: bool = False

    @property
    def bad(self) -> bool:
        """Whether this process ended with an error."""
        return self.kind not in ("done", "saved")


What = Literal["loaded", "device", "ready"]
"""A process has loaded torch; its device works; it has reached all other processes."""


class Ready(Strict):
    """The report of one process before it reads any data.

    Attributes:
        rank: the rank of the process.
        host: the node's name.
        time: seconds since 1970.
        device: `cpu`, or `cuda:0` and the GPU's name.
        tflops: 1e12 operations a second of a matrix product in bfloat16; None: not measured.
        seconds: the duration of the check.
    """

    rank: int
    host: str
    time: float
    device: str
    tflops: float | None = None
    seconds: float


def conclude(work: Callable[[], int]) -> int:
    """Do a command's work, write this process's report, and return the exit code.

    Raises:
        BaseException: any unexpected error, and SystemExit, after the report is written.
    """
    with tolerant():
        try:
            with to_stderr():
                code = work()
            lost = output_lost()
            if lost is not None and code == EXIT_DONE:
                raise RunError(f"standard output: {lost}; not all of it was written")
        except KeyboardInterrupt:
            if process()[0] == 0:
                tell("interrupted")
            leave("failed", "interrupted")
            return EXIT_FAILED
        except SystemExit as e:
            _leave_code(e.code)
            raise
        except BaseException as e:
            error = _translated(e)
            for foreseen, kind, code in _FORESEEN:
                if isinstance(error, foreseen):
                    leave(kind, error)
                    tell_error(error)
                    return code
            leave("crashed", e)
            raise
        _leave_code(code)
        return code


def _translated(error: BaseException) -> BaseException:
    """Return errors of the file system as the user's mistake, or as a failure of the disk."""
    sentence = refusal(error) if isinstance(error, OSError) else None
    if sentence is None or not isinstance(error, OSError):
        return error
    return UserError(sentence) if error.errno in MISTAKES else RunError(sentence)


def leave(kind: Kind, error: BaseException | str = "") -> None:
    """Write this process's report, if a launcher asked for it. Never raises.

    Args:
        kind: as in `Outcome`.
        error: the error's sentence, or the exception, whose traceback is kept for a crash.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        return
    with contextlib.suppress(Exception):
        whole, echo = "", False
        if kind == "crashed" and isinstance(error, BaseException):
            whole = "".join(traceback.format_exception(error))
            first = (str(error).strip().splitlines() or [""])[0]
            error = f"{type(error).__name__}: {first}".removesuffix(": ")
            echo = _ECHO.search(error) is not None
        word = Outcome(kind=kind, error=str(error), traceback=whole, echo=echo, **_who())
        try:
            _add(_own_file(Path(folder)), _END, word)
        except OSError:
            if spare := os.environ.get(SPARE):
                _add(_own_file(Path(spare)), _END, word)


def leave_for(folder: Path, rank: int, kind: Kind, error: str, node: int = 0) -> None:
    """Write the report of a process of a node that cannot do so itself, unless it exists.

    It never raises.
    """
    with contextlib.suppress(Exception):
        if rank not in {word.rank for word in _of_file(file_of(folder, node), _END, Outcome)}:
            word = Outcome(kind=kind, error=error, **(_who() | {"rank": rank}))
            _add(file_of(folder, node), _END, word)


def pass_on(spare: Path, folder: Path) -> list[Outcome]:
    """Move reports from the node's own disk to the folder; return those for which it is too full.

    It never raises.
    """
    left = []
    with contextlib.suppress(OSError):
        for file in sorted(spare.iterdir()):
            for word in _of_file(file, _END, Outcome):
                try:
                    _add(folder / file.name, _END, word)
                except OSError:
                    left.append(word)
    return left


def read(folder: Path) -> list[Outcome]:
    """Read the reports in a folder; the process that failed first comes first.

    Clocks of nodes differ, so processes that failed because of a peer come after the others. A
    file that is damaged or of another version is skipped.
    """
    found = []
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder)):
            if name.startswith("said-"):
                found += _of_file(folder / name, _END, Outcome)
            elif name.startswith("rank-"):  # an earlier version wrote a file for each process
                with contextlib.suppress(OSError, ValueError):
                    found.append(Outcome.model_validate_json((folder / name).read_text()))
    return sorted(found, key=lambda word: (not word.bad, word.echo, word.time))


def announce(what: What, device: str, tflops: float | None, seconds: float) -> None:
    """Report how far this process has come; the other arguments are as in `Ready`.

    Raises:
        OSError: the folder cannot be written; the launcher would wait in vain.
    """
    if folder := os.environ.get(FOLDER):
        word = Ready(device=device, tflops=tflops, seconds=seconds, **_who())
        _add(_own_file(Path(folder)), what, word)


def told(file: Path, what: What) -> list[Ready]:
    """Return the reports of a node's processes that have come so far, in no particular order."""
    return _of_file(file, what, Ready)


def file_of(folder: Path, node: int) -> Path:
    """Return the file of all reports of a node's processes, which need not exist."""
    return folder / f"said-{node:05d}.jsonl"


def _leave_code(code: object) -> None:
    if code is not None and not isinstance(code, int):
        leave("failed", str(code))  # sys.exit("a sentence") exits with code 1
        return
    kind = _OF_CODE.get(code or 0, "failed")
    leave(kind, "" if kind in ("done", "saved") else f"it ended with exit code {code}; see its log")


def _who() -> dict[str, Any]:
    rank = int(os.environ.get("RANK", "0"))
    return {"rank": rank, "host": node_name(), "time": time.time()}


def _own_file(folder: Path) -> Path:
    return file_of(folder, int(os.environ.get(NODE, "0")))


def _add(file: Path, what: str, word: Strict) -> None:
    line = json.dumps({_WHAT: what, **word.model_dump(mode="json")})
    append_line(file, line, 0o640)  # in a folder that is private, or that a group may read


def _of_file(file: Path, what: str, kind: type[W]) -> list[W]:
    """Return a node's reports of one kind; damaged ones are skipped."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in filter(None, lines):
        with contextlib.suppress(ValueError):  # pydantic's errors are ValueErrors
            row = json.loads(line)
            if isinstance(row, dict) and row.pop(_WHAT, None) == what:
                found.append(kind.model_validate(row))
    return found
