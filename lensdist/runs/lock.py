"""Ensure that one process at a time writes a run's folder, on any file system (torch-free).

`flock` does not work everywhere: Lustre may be mounted without it, or with one that is local to a
node. So every process that wants the folder first creates a file there, its claim, whose name
identifies the process, and only then looks for other claims. Of two that come at once, at least one
sees the other. A claim's name is never used again, so a dead one can be removed safely.

The system tells whether a process of this machine is alive: a killed run can continue at once. A
process elsewhere touches its claim every `BEAT` seconds. It counts as dead once its claim is
`PATIENCE` seconds old by the file system's own clock, if it stays untouched while we watch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lensdist.utils.errors import EXIT_FAILED, Busy, UserError, refusal
from lensdist.utils.owners import Owner, owner_of, tag

log = logging.getLogger(__name__)

BEAT = 5.0
PATIENCE = 60.0
_TRIES = 20
_LOOK = 0.05  # s
_CLAIM = re.compile(r"\.lock\.\d+-\d+-.*@.*")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder, created if it does not exist; remove it at the end if it is still empty.

    Two runs in one folder would delete each other's checkpoints as leftovers of a killed process.

    Raises:
        Busy: another process holds it.
        UserError: it cannot be created or written to.
    """
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        for tries in range(_TRIES):
            with _claim(folder) as mine:
                rival = _rival(mine)
                if rival is None:
                    mine.write_text(f"SLURM job {os.environ.get('SLURM_JOB_ID', 'none')}\n")
                    yield
                    return
            if _holds(rival) or tries == _TRIES - 1:
                raise Busy(
                    f"another run is writing to {folder}: {_whose(rival)}; wait for it, or give "
                    f"another run.dir; if that process is known to be dead, delete {rival}"
                )
            time.sleep(random.uniform(_LOOK, 10 * _LOOK))
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


@contextmanager
def _claim(folder: Path) -> Iterator[Path]:
    """Create this process's claim to the folder, and touch it while the process is alive."""
    mine, done = folder / f".lock.{tag()}", threading.Event()
    beating = threading.Thread(target=_beat, args=(mine, done), name="lock", daemon=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mine.touch()
    except OSError as e:
        raise UserError(f"run.dir {folder} cannot be written: {refusal(e) or e}") from e
    beating.start()
    try:
        yield mine
    finally:
        done.set()
        beating.join()
        with contextlib.suppress(OSError):
            mine.unlink()


def _rival(mine: Path) -> Path | None:
    """Return another claim that goes before ours; None: the folder is ours. Remove dead claims."""
    for name in sorted(os.listdir(mine.parent)):
        path, owner = mine.with_name(name), owner_of(name)
        if path == mine or owner is None or not _CLAIM.fullmatch(name):
            continue
        if _gives_way(path, owner, mine):
            path.unlink(missing_ok=True)
        else:
            return path
    return None


def _gives_way(path: Path, owner: Owner, mine: Path) -> bool:
    """Wait until a claim is gone, known to be dead, or known to go before ours.

    The holder of the folder goes first; among those that wait, the first by name.
    """
    if owner.here:
        while not owner.dead and path.exists():
            if _holds(path) or path.name < mine.name:
                return False
            time.sleep(_LOOK)
        return True
    try:
        touched, began = path.stat().st_mtime, time.monotonic()
        age = max(0.0, mine.stat().st_mtime - touched)
        patience = max(2 * BEAT + 1, PATIENCE - age)
        who = _whose(path)
        log.warning("%s was in use by %s; waiting up to %.0f s for it", path.parent, who, patience)
        while time.monotonic() - began < patience:
            time.sleep(_LOOK * 10)
            alive = _touched(path) != touched
            if alive and (_holds(path) or path.name < mine.name):
                return False
    except FileNotFoundError:
        return True
    return not alive


def _touched(path: Path) -> float:
    """Return the time from the server: opening a file makes a network file system refresh it."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime


def _holds(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _whose(path: Path) -> str:
    job = ""
    with contextlib.suppress(OSError):
        job = path.read_text().strip()
    return f"{owner_of(path.name)}{f', {job}' if job and not job.endswith('none') else ''}"


def _beat(mine: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        try:
            os.utime(mine)
        except FileNotFoundError:
            _missing(mine)
        except OSError:
            pass  # the disk is away for a while: other processes cannot look either


def _missing(mine: Path) -> None:
    """End the process if another now holds the folder, having taken our claim for dead.

    This happens after a process was suspended for a minute. It must not save: the folder belongs to
    the other process. If no other holds it, claim it again.
    """
    with contextlib.suppress(OSError):
        others = [p for p in mine.parent.iterdir() if _CLAIM.fullmatch(p.name)]
        if any(_holds(path) for path in others):
            who = _whose(others[0])
            log.error("%s was taken over by %s; this process ends", mine.parent, who)
            os._exit(EXIT_FAILED)
        mine.write_text("SLURM job none\n")
