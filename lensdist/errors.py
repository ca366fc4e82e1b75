"""What can go wrong, and the exit code that says so (torch-free).

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

from lensdist.owners import final_name

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: "try again later" is what it has always meant

_MOMENT = 3  # s; torchrun looks ten times a second whether a process has left


class UserError(Exception):
    """Something the user can mend: one sentence that says what is wrong, where, and what to do.

    Raised before any work is started or any file is written, so commands exit with 2.

    Attributes:
        told: another process of the run says it.
    """

    told = False


class Busy(UserError):
    """Another process writes where this one would; it may soon be gone."""


class RunError(Exception):
    """A run that had started could not go on; commands exit with 1.

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
    """What a disk has to say, as a sentence; None: it is not a disk that says it.

    Args:
        error: what was raised.
        where: the file or folder that was being written, should the error not name one.
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
    """Whether it is the place that is wrong, and not the disk that is full or failing."""
    return error.errno in _MAY_NOT | _NO_SUCH


@contextlib.contextmanager
def begun(where: object = None) -> Iterator[None]:
    """Work has begun: what a disk refuses from here on is a failure, not a wrong request.

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
