"""Errors of commands, and their exit codes (torch-free).

Exit codes are part of the contract with shells, schedulers and `slurm/submit.py`:
0 done; 1 failure; 2 bad configuration or input, nothing was started; 75 saved, run me again.
"""

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lensdist.utils.owners import final_name

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: try again later

_MOMENT = 3  # s; torchrun looks ten times a second whether a process has left


class UserError(Exception):
    """An error that the user can correct: one sentence says what is wrong, where, and what to do.

    It is raised before any work is started or any file is written, so commands exit with 2.

    Attributes:
        told: another process of the run prints it.
    """

    told = False


class Busy(UserError):
    """Another process writes to the same place; it may end soon."""


class RunError(Exception):
    """A run that had started cannot continue; commands exit with 1.

    Attributes:
        told: as in `UserError`.
    """

    told = False


_MAY_NOT = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_SUCH = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BROKEN = {errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENOTCONN, errno.ENXIO, errno.ENODEV}
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY, errno.ETXTBSY, errno.EINVAL}


def refusal(error: OSError, where: object = None) -> str | None:
    """Return a sentence for an error of a disk; None if it is another kind of error.

    Args:
        error: what was raised.
        where: the file or folder that was being written, if the error does not name one.
    """
    number, name = error.errno, error.filename if error.filename is not None else where
    if number is None and "requested and" in str(error):  # NumPy's, of a full disk
        number = errno.ENOSPC
    if number not in (
        _FULL | _BROKEN | (_MAY_NOT | _NO_SUCH | _TAKEN if name is not None else set())
    ):
        return None
    assert number is not None
    why = os.strerror(number)
    if number in _FULL:
        why += "; make room, then run the command again"
    elif number in _MAY_NOT:
        why += "; look at its owner and permissions (ls -ld), or give another place"
    return f"{'the disk' if name is None else final_name(os.fsdecode(str(name)))}: {why}"


def is_mistake(error: OSError) -> bool:
    """Return whether the path is wrong; otherwise the disk is full or fails."""
    return error.errno in _MAY_NOT | _NO_SUCH


@contextlib.contextmanager
def begun(where: object = None) -> Iterator[None]:
    """Turn errors of a disk into failures (exit code 1), because work has begun.

    Args:
        where: as in `refusal`.

    Raises:
        RunError: the disk is full, fails or refuses.
    """
    try:
        yield
    except OSError as error:
        sentence = refusal(error, where)
        if sentence is None:
            raise
        raise RunError(sentence) from error


_rank, _size = 0, 1


def set_rank(rank: int, size: int = 1) -> None:
    """Set which of a run's processes this is. Others are alone, whatever RANK a shell has left."""
    global _rank, _size
    _rank, _size = rank, size


def process() -> tuple[int, int]:
    """Return the rank of this process, and the number of processes."""
    return _rank, _size


def tell(line: str) -> None:
    """Print the sentence that a command ends with; a stream that is closed changes nothing."""
    if sys.stderr is not None:  # else it would go to standard output
        with contextlib.suppress(OSError, ValueError):  # closed, or its reader has left
            print(line, file=sys.stderr, flush=True)


def tell_error(error: Exception) -> None:
    """Tell a person the error that ends a command, once however many processes there are.

    An error of one node only is not known to the first process. An error of all processes is told
    by the first of a node: a launcher ends the others as soon as one has left, while they wait.
    torchrun's report, which comes last, has the sentence too.
    """
    if _rank == 0 or os.environ.get("LOCAL_RANK") == "0":
        _tell_torchrun(str(error))
    else:
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(_MOMENT)
    if not getattr(error, "told", False):
        tell(f"[process {_rank}] error: {error}" if _rank else f"error: {error}")


def _tell_torchrun(sentence: str) -> None:
    """Write the file of torch's own `torch.distributed.elastic.multiprocessing.errors.record`."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        extra = {"py_callstack": f"error: {sentence}", "timestamp": str(int(time.time()))}
        text = json.dumps({"message": {"message": sentence, "extraInfo": extra}})
        with contextlib.suppress(OSError):
            Path(file).write_text(text)
