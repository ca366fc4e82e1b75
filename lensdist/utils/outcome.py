"""Reports of a run's processes to the launcher: ready, and how they ended (torch-free).

Exit codes do not suffice: accelerate's launcher exits with 1 whether one process crashed or all of
them saved and stopped. So where `LENSDIST_OUTCOME` names a folder, every process writes a file
there, and the launcher reads which process ended first, how, and why.
"""

from __future__ import annotations

import contextlib
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
from lensdist.utils.files import write_atomic
from lensdist.utils.logs import to_stderr
from lensdist.utils.owners import node_name as node_name
from lensdist.utils.settings import Strict
from lensdist.utils.streams import output_lost, tolerant

FOLDER = "LENSDIST_OUTCOME"
"""The environment variable with the folder of the reports; without it none is written."""

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


class Ready(Strict):
    """The report of one process's check before it reads any data.

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
        _write(Path(folder), kind, str(error), traceback=whole, echo=echo)


def leave_for(folder: Path, rank: int, kind: Kind, error: str) -> None:
    """Write the report of a process of this node that cannot do so itself, unless it exists.

    It never raises.
    """
    with contextlib.suppress(Exception):
        if not _file(folder, "rank", rank).exists():
            _write(folder, kind, error, rank=rank)


def read(folder: Path) -> list[Outcome]:
    """Read the reports in a folder; the process that failed first comes first.

    Clocks of nodes differ, so processes that failed because of a peer come after the others. A
    file that is damaged or of another version is skipped.
    """
    found = _all(folder, "rank", Outcome)
    return sorted(found, key=lambda word: (not word.bad, word.echo, word.time))


def announce(
    what: Literal["device", "ready"], device: str, tflops: float | None, seconds: float
) -> None:
    """Report that this process's device works, or that it has reached all other processes.

    The other arguments are as in `Ready`.

    Raises:
        OSError: the folder cannot be written; the launcher would wait in vain.
    """
    if folder := os.environ.get(FOLDER):
        word = Ready(device=device, tflops=tflops, seconds=seconds, **_who())
        write_atomic(_file(Path(folder), what, word.rank), word.model_dump_json(indent=1))


def devices(folder: Path) -> list[Ready]:
    """Return the reports of the processes whose device works, in no particular order."""
    return _all(folder, "device", Ready)


def ready(folder: Path) -> list[Ready]:
    """Return the reports of the processes that have reached all others, in no particular order."""
    return _all(folder, "ready", Ready)


def _leave_code(code: object) -> None:
    if code is not None and not isinstance(code, int):
        leave("failed", str(code))  # sys.exit("a sentence") exits with code 1
        return
    kind = _OF_CODE.get(code or 0, "failed")
    leave(kind, "" if kind in ("done", "saved") else f"it ended with exit code {code}; see its log")


def _write(folder: Path, kind: Kind, error: str, **more: Any) -> None:
    word = Outcome(kind=kind, error=error, **(_who() | more))
    write_atomic(_file(folder, "rank", word.rank), word.model_dump_json(indent=1))


def _who() -> dict[str, Any]:
    rank = int(os.environ.get("RANK", "0"))
    return {"rank": rank, "host": node_name(), "time": time.time()}


def _all(folder: Path, what: str, kind: type[W]) -> list[W]:
    found = []
    for file in sorted(folder.glob(f"{what}-*.json")):
        with contextlib.suppress(OSError, ValueError):  # pydantic's errors are ValueErrors
            found.append(kind.model_validate_json(file.read_text()))
    return found


def _file(folder: Path, what: str, rank: int) -> Path:
    return folder / f"{what}-{rank:05d}.json"
