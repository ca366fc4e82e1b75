"""Stop requests: signals, and the end of the launcher (torch-free).

`sbatch --signal` is set to send SIGUSR2, because NCCL uses SIGUSR1. Preemption and scancel send
SIGTERM, Ctrl-C sends SIGINT, and a closed terminal or connection sends SIGHUP.
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
_gone = False  # whether the launcher has ended


def heard() -> str | None:
    """Return the first request since the last `begin`; None if there was none."""
    return _heard


def begin(*, trains: bool) -> None:
    """Exit with one sentence on a request, until `listen` is called: there is nothing to save yet.

    If the command trains, running it again continues (exit code 75). Other commands handle Ctrl-C
    only, and exit with 1.
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
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if rank.isdigit() and "MASTER_ADDR" in os.environ:  # `launched` checks them fully
        set_rank(int(rank), int(size) if size.isdigit() else 1)
    listen(_too_early)


def listen(hear: Callable[[int, str], None]) -> None:
    """Call `hear` with the number and the name of every request from now on.

    SIGINT and SIGHUP that were ignored at the start (`nohup`, a shell's background job) stay
    ignored, except under a launcher: torchrun passes them on, and kills processes that stay.
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
    """Return the id of the torchrun, accelerate or DeepSpeed process above this one; Linux only."""
    process = os.getppid()
    while process > 0:
        folder = Path("/proc") / str(process)
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:6]
            if any(os.path.basename(word) in _LAUNCHERS for word in words):
                return process
            process = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # not Linux, or the process has just ended
            return None
    return None


def _leave_without(process: int) -> None:
    """Send this process SIGTERM once its launcher has ended.

    A launcher that is killed would leave its processes training. (The kernel's PR_SET_PDEATHSIG
    follows the thread that started a process, not the process of that thread.)
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
        if _heard is None:  # else it is stopping, and a second request could end it before it saves
            _gone = True
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="launcher", daemon=True).start()


def _too_early(number: int, name: str) -> NoReturn:
    if process()[0] == 0:
        tell(f"stopped ({name}) before training began; run it again")
    raise SystemExit(EXIT_REQUEUE)


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    tell("interrupted")
    raise SystemExit(EXIT_FAILED)
