"""Errors of commands, and their exit codes (torch-free).

Shells, schedulers and `slurm/submit.py` rely on the exit codes: 0 done; 1 failure; 2 bad
configuration or input, nothing was started; 75 stopped and saved, run the command again.
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

_MOMENT = 3  # s; torchrun checks ten times a second whether a process has exited


class _Foreseen(Exception):
    told = False
    """Whether another process of the run prints it."""


class UserError(_Foreseen):
    """An error that the user can correct: one sentence says what is wrong, where, and what to do.

    It is raised before any work is started or any file is written, so commands exit with 2.
    """


class Busy(UserError):
    """An error: another process writes to the same place; it may end soon."""


class RunError(_Foreseen):
    """A run that had started cannot continue; commands exit with 1."""


_MAY_NOT = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_SUCH = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
MISTAKES = _MAY_NOT | _NO_SUCH
"""The numbers of errors that mean a wrong path; with others the disk is full or fails."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BROKEN = {errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENOTCONN, errno.ENXIO, errno.ENODEV}
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY, errno.ETXTBSY, errno.EINVAL}


def refusal(error: OSError, where: object = None) -> str | None:
    """Return a sentence for an error of the file system; None for any other error.

    `where` is the file or folder that was being written, if the error does not name one.
    """
    number, name = error.errno, error.filename if error.filename is not None else where
    if number is None and "requested and" in str(error):  # NumPy's message on a full disk
        number = errno.ENOSPC
    named = MISTAKES | _TAKEN if name is not None else set()
    if number is None or number not in _FULL | _BROKEN | named:
        return None
    why = os.strerror(number)
    if number in _FULL:
        why += "; make room, then run the command again"
    elif number in _MAY_NOT:
        why += "; check its owner and permissions (ls -ld), or give another path"
    return f"{'the disk' if name is None else final_name(os.fsdecode(str(name)))}: {why}"


@contextlib.contextmanager
def begun(where: object = None) -> Iterator[None]:
    """Turn errors of the file system into failures (exit code 1), because work has begun.

    `where` is as in `refusal`.

    Raises:
        RunError: the disk is full or fails, or the file system refuses.
    """
    try:
        yield
    except OSError as error:
        sentence = refusal(error, where)
        if sentence is None:
            raise
        raise RunError(sentence) from error


_rank, _size = 0, 1


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def set_rank(rank: int, size: int = 1) -> None:
    """Set the rank of this process. Without it a process is alone, whatever RANK a shell holds."""
    global _rank, _size
    _rank, _size = rank, size


def process() -> tuple[int, int]:
    """Return the rank of this process, and the number of processes."""
    return _rank, _size


def tell(line: str) -> None:
    """Print the last sentence of a command; do nothing if the stream is closed."""
    if sys.stderr is not None:  # else it would go to standard output
        with contextlib.suppress(OSError, ValueError):  # it or its reader is closed
            print(line, file=sys.stderr, flush=True)


def tell_error(error: Exception) -> None:
    """Print the error that ends a command, once for any number of processes.

    The first process of each node prints, since an error of one node is not known elsewhere. The
    others wait: the launcher ends them once one process has exited. torchrun's report, which
    comes last, holds the sentence too.
    """
    if _rank == 0 or os.environ.get("LOCAL_RANK") == "0":
        _tell_torchrun(str(error))
    else:
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(_MOMENT)
    if not getattr(error, "told", False):
        tell(f"[process {_rank}] error: {error}" if _rank else f"error: {error}")


def _tell_torchrun(sentence: str) -> None:
    """Write the file that `torch.distributed.elastic.multiprocessing.errors.record` writes."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        extra = {"py_callstack": f"error: {sentence}", "timestamp": str(int(time.time()))}
        text = json.dumps({"message": {"message": sentence, "extraInfo": extra}})
        with contextlib.suppress(OSError):
            Path(file).write_text(text)
