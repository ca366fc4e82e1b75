"""One process writes a run's folder at a time, on any file system (torch-free).

`flock` is not to be had everywhere: Lustre may be mounted without it, or with one that only counts
on one node. So every process that wants the folder first makes a file there, its claim, whose name
says which process it is, and only then looks for claims of others. Of two that come at once, at
least one sees the other. A claim's name is never used again, so a dead one can be removed safely.

Whether a process of this machine lives, the system tells: a killed run can go on at once. One
elsewhere touches its claim every `BEAT` seconds. After `PATIENCE` seconds without, by the file
system's own clock, and none while we watch, it counts as dead.
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
    """Hold a folder, made where it is not there; if it is still empty at the end, it goes again.

    Two runs in one folder would delete each other's checkpoints as leavings of a lost life.

    Raises:
        Busy: another process holds it.
        UserError: it cannot be made, or not be written to.
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
    """A file that says that this process wants the folder, touched as long as it lives."""
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
    """Another's claim that goes before ours; None: the folder is ours. Dead ones are removed."""
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
    """Wait until a claim is gone or known to be dead, or else to go before ours.

    Who already holds the folder goes before, and among those who only want it the first by name.
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
    """When it was, asked of the server: to open a file makes a network file system look anew."""
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
            pass  # a disk that is away for a while: nobody else can look either


def _missing(mine: Path) -> None:
    """Somebody took our claim for dead and removed it: whoever has the folder now must not suffer.

    So after a process was suspended for a minute. It saves nothing: another life of the run does.
    """
    with contextlib.suppress(OSError):
        others = [p for p in mine.parent.iterdir() if _CLAIM.fullmatch(p.name)]
        if any(_holds(path) for path in others):
            who = _whose(others[0])
            log.error("%s was taken over by %s; this process ends", mine.parent, who)
            os._exit(EXIT_FAILED)
        mine.write_text("SLURM job none\n")
