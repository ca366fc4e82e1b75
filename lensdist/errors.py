"""What can go wrong, and the exit code that says so (torch-free).

Exit codes are part of the contract with shells, schedulers and `slurm/submit.py`:
0 done; 1 failure; 2 bad configuration or input, nothing was started; 75 saved, run me again.
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: "try again later" is what it has always meant

_MOMENT = 3  # s; torchrun looks ten times a second whether a process has left


class UserError(Exception):
    """Something the user can mend: one sentence that says what is wrong, where, and what to do.

    Raised before any work is started or any file is written, so commands exit with 2.
    """


class Busy(UserError):
    """Another process writes where this one would; it may soon be gone."""


class RunError(Exception):
    """A run that had started could not go on; commands exit with 1."""


_rank = 0


def set_rank(rank: int) -> None:
    """Say which of a run's processes this is. Others are alone, whatever RANK a shell has left."""
    global _rank
    _rank = rank


def say(sentence: str) -> None:
    """Tell a person something, once however many processes there are."""
    if _rank == 0:
        print(sentence, file=sys.stderr, flush=True)


def complain(error: Exception) -> None:
    """Tell a person what went wrong: what is amiss on one node only, the first does not know.

    What all processes find, the first of a node says: a launcher ends the others as soon as one
    has left, while they wait. torchrun's report, which comes last, has the sentence too.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        _tell_torchrun(str(error))
    else:
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(_MOMENT)
    where = f"[process {_rank}] " if _rank else ""
    print(f"{where}error: {error}", file=sys.stderr, flush=True)


def _tell_torchrun(sentence: str) -> None:
    """In the form of torch's own `torch.distributed.elastic.multiprocessing.errors.record`."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        extra = {"py_callstack": f"error: {sentence}", "timestamp": str(int(time.time()))}
        text = json.dumps({"message": {"message": sentence, "extraInfo": extra}})
        with contextlib.suppress(OSError):
            Path(file).write_text(text)
