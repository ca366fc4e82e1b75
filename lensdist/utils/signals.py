"""Being asked to stop: by which signals, and by the end of the launcher (torch-free).

SIGUSR2 is what `sbatch --signal` is told to send (NCCL uses SIGUSR1), SIGTERM is preemption and
scancel, SIGINT is a person, SIGHUP is a terminal or a connection that was closed.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lensdist.utils.errors import EXIT_FAILED, EXIT_REQUEUE, process, set_rank, tell

_REQUESTS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
_LAUNCHERS = {
    *("torchrun", "torch.distributed.run", "torch.distributed.launch"),
    *("accelerate", "accelerate-launch", "accelerate.commands.launch"),
    *("deepspeed", "deepspeed.launcher.launch"),
}

_heard: str | None = None
_launcher: int | None = None
_gone = False  # the launcher


def heard() -> str | None:
    """The first request since the last `begin`, if there was one."""
    return _heard


def begin(*, trains: bool) -> None:
    """Until something else listens there is nothing to save: leave with one sentence.

    Args:
        trains: whether this is a training, which the same command starts again (exit code 75).
            Other commands take Ctrl-C only, and exit with 1.
    """
    global _heard, _launcher
    _heard = None
    if not trains:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, _interrupted)
        return
    if _launcher is None:
        _launcher = launcher()
        if _launcher is not None:
            _leave_without(_launcher)
    rank = os.environ.get("RANK", "")
    if (
        rank.isdigit() and "MASTER_ADDR" in os.environ
    ):  # `lensdist.utils.launched` looks more closely
        size = os.environ.get("WORLD_SIZE", "")
        set_rank(int(rank), int(size) if size.isdigit() else 1)
    listen(_too_early)


def listen(hear: Callable[[int, str], None]) -> None:
    """Call `hear` with the number and the name of every request from now on.

    SIGINT and SIGHUP that were ignored at the start (`nohup`, a job in a shell's background) stay
    ignored, but not under a launcher: torchrun passes them on, and kills who does not leave.
    """

    def handler(number: int, frame: FrameType | None) -> None:
        global _heard
        name = "its launcher is gone" if _gone else signal.Signals(number).name
        _heard = _heard or name
        hear(number, name)

    for number in _REQUESTS:
        kept = number in (signal.SIGINT, signal.SIGHUP) and _launcher is None
        if not (kept and signal.getsignal(number) is signal.SIG_IGN):
            signal.signal(number, handler)


def launcher() -> int | None:
    """The process of the torchrun, accelerate or DeepSpeed that started this one; Linux only."""
    process = os.getppid()
    while process > 0:
        folder = Path("/proc") / str(process)
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:6]
            if any(os.path.basename(word) in _LAUNCHERS for word in words):
                return process
            process = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # no Linux, or it has just ended
            return None
    return None


def _leave_without(process: int) -> None:
    """Send this process SIGTERM once its launcher has ended, however that ended.

    A launcher that is killed leaves its processes training, and nobody looks after them. (The
    kernel's PR_SET_PDEATHSIG is about the thread that started a process, not about its process.)
    """

    def wait() -> None:
        global _gone
        try:
            end = select.poll()
            end.register(os.pidfd_open(process), select.POLLIN)
            end.poll()
        except ProcessLookupError:
            pass
        except OSError:  # a kernel before 5.3
            return
        if _heard is None:  # else it is leaving: a second request could end it before it has saved
            _gone = True
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="launcher", daemon=True).start()


def _too_early(number: int, name: str) -> NoReturn:
    if process()[0] == 0:
        tell(f"told to stop ({name}) before training began; run it again")
    raise SystemExit(EXIT_REQUEUE)


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    tell("interrupted")
    raise SystemExit(EXIT_FAILED)
