"""Reports of a run's processes to the launcher: ready, and how they ended (torch-free).

Exit codes do not suffice: accelerate's launcher exits with 1 whether one process crashed or all of
them saved and stopped. So where `LENSDIST_OUTCOME` names a folder, every process writes a file
there, and the launcher reads which process ended first, how, and why.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from lensdist.utils.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_REQUEUE,
    Busy,
    RunError,
    UserError,
    is_mistake,
    process,
    refusal,
    tell,
    tell_error,
)
from lensdist.utils.files import write_atomic
from lensdist.utils.logs import to_stderr
from lensdist.utils.settings import Strict
from lensdist.utils.streams import output_lost, tolerant

FOLDER = "LENSDIST_OUTCOME"
"""The environment variable with the folder of the reports; without it none is written."""

Kind = Literal["done", "saved", "input", "failed", "crashed", "device", "busy"]

W = TypeVar("W", bound=Strict)
_OF_CODE: dict[int, Kind] = {EXIT_DONE: "done", EXIT_REQUEUE: "saved", EXIT_BAD_INPUT: "input"}
# Errors raised in the peers of a process that has crashed.
_ECHO = re.compile(r"\bDist\w*Error\b|gloo|nccl", re.IGNORECASE)


class DeviceError(Exception):
    """A fault of this process's device, or of the node's driver; another node may work."""


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

    Args:
        work: returns an exit code.

    Raises:
        BaseException: any unexpected error, and SystemExit, after the report is written.
    """
    with tolerant():
        return _conclude(work)


def _conclude(work: Callable[[], int]) -> int:
    try:
        with to_stderr():
            code = work()
        lost = output_lost()
        if lost is not None and code == EXIT_DONE:
            raise RunError(f"standard output: {lost}; not all of it was written")
    except Busy as e:
        return _complained("busy", e, EXIT_BAD_INPUT)
    except UserError as e:
        return _complained("input", e, EXIT_BAD_INPUT)
    except RunError as e:
        return _complained("failed", e, EXIT_FAILED)
    except DeviceError as e:
        return _complained("device", e, EXIT_FAILED)
    except KeyboardInterrupt:
        if process()[0] == 0:
            tell("interrupted")
        leave("failed", "interrupted")
        return EXIT_FAILED
    except SystemExit as e:
        _leave_code(e.code)
        raise
    except BaseException as e:
        sentence = refusal(e) if isinstance(e, OSError) else None
        if sentence is None or not isinstance(e, OSError):
            leave("crashed", e)
            raise
        if is_mistake(e):
            return _complained("input", UserError(sentence), EXIT_BAD_INPUT)
        return _complained("failed", RunError(sentence), EXIT_FAILED)
    _leave_code(code)
    return code


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
        _write(Path(folder), _rank(), kind, str(error), whole, echo)


def leave_for(folder: Path, rank: int, kind: Kind, error: str) -> None:
    """Write the report of a process that cannot do so itself, unless it exists. Never raises.

    Args:
        folder: the folder of the reports.
        rank: the rank of the process; its host is taken to be this one.
        kind: as in `Outcome`.
        error: a sentence.
    """
    with contextlib.suppress(Exception):
        if not _file(folder, "rank", rank).exists():
            _write(folder, rank, kind, error)


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

    Args:
        what: `device` or `ready`: which of the two.
        device: as in `Ready`.
        tflops: as in `Ready`.
        seconds: as in `Ready`.

    Raises:
        OSError: the folder cannot be written; the launcher would wait in vain.
    """
    folder = os.environ.get(FOLDER)
    if folder:
        rank = _rank()
        word = Ready(
            rank=rank,
            host=node_name(),
            time=time.time(),
            device=device,
            tflops=tflops,
            seconds=seconds,
        )
        write_atomic(_file(Path(folder), what, rank), word.model_dump_json(indent=1))


def devices(folder: Path) -> list[Ready]:
    """Return the reports of the processes whose device works, in no particular order."""
    return _all(folder, "device", Ready)


def ready(folder: Path) -> list[Ready]:
    """Return the reports of the processes that have reached all others, in no particular order."""
    return _all(folder, "ready", Ready)


def node_name() -> str:
    """Return the name of this node, SLURM's name inside a SLURM job."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _complained(kind: Kind, error: Exception, code: int) -> int:
    leave(kind, error)
    tell_error(error)
    return code


def _leave_code(code: object) -> None:
    if code is not None and not isinstance(code, int):
        leave("failed", str(code))  # sys.exit("a sentence") exits with code 1
        return
    kind = _OF_CODE.get(code or 0, "failed")
    leave(kind, "" if kind in ("done", "saved") else f"it ended with exit code {code}; see its log")


def _write(
    folder: Path, rank: int, kind: Kind, error: str, traceback: str = "", echo: bool = False
) -> None:
    word = Outcome(
        kind=kind,
        rank=rank,
        host=node_name(),
        time=time.time(),
        error=error,
        traceback=traceback,
        echo=echo,
    )
    write_atomic(_file(folder, "rank", rank), word.model_dump_json(indent=1))


def _all(folder: Path, what: str, kind: type[W]) -> list[W]:
    found = []
    for file in sorted(folder.glob(f"{what}-*.json")):
        with contextlib.suppress(OSError, ValueError):  # pydantic's errors are ValueErrors
            found.append(kind.model_validate_json(file.read_text()))
    return found


def _file(folder: Path, what: str, rank: int) -> Path:
    return folder / f"{what}-{rank:05d}.json"


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
