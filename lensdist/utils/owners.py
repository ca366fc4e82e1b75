"""Names of temporary files that identify the process that made them (torch-free).

    .NAME.PID-START-TOKEN@MACHINE-HOST.tmp

Every temporary file and folder of lensdist has such a name, and so has the lock of a run's
folder. A process that is killed leaves its files behind. The next process that writes to the same
folder removes them, if they were made on this machine and their process has ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import socket
from functools import cache
from pathlib import Path
from typing import NamedTuple

_TAG = r"(\d+)-(\d+)-[0-9a-f]{6}@([0-9a-f]{8})-([\w.-]+?)"
_OWNED = re.compile(rf"\..+\.{_TAG}(?:\.tmp(?:\..+)?)?")
_TEMPORARY = re.compile(rf"\.(.+)\.{_TAG}\.tmp(?:\..+)?")
# Earlier versions named no machine, so only the holder of a run's lock may remove these.
_OLDER = re.compile(r"\..+\.(?:\d+\.(?:tmp|old)|[0-9a-f]{8}\.partial)")


class Owner(NamedTuple):
    """A process that made a file.

    Attributes:
        pid: its process id.
        started: its start in clock ticks since boot; 0 where unknown.
        machine: a hash of the machine's boot and of the namespace of process ids.
        host: the machine's name.
    """

    pid: int
    started: int
    machine: str
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def here(self) -> bool:
        """Whether it belongs to this machine, which can then check whether it runs."""
        return self.machine == _machine()

    @property
    def dead(self) -> bool:
        """Whether it has certainly ended; False for a process on another machine."""
        if not self.here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's
            pass
        about = _about(self.pid)
        return about is not None and (about[0] in "ZX" or about[1] != self.started)


def node_name() -> str:
    """Return the name of this node, SLURM's name inside a SLURM job."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def tag() -> str:
    """Return this process and a few random digits, in characters that suit a file name."""
    about = _about(os.getpid())
    host = re.sub(r"[^\w.-]", "_", node_name())
    started = about[1] if about else 0
    return f"{os.getpid()}-{started}-{secrets.token_hex(3)}@{_machine()}-{host[:48]}"


def owner_of(name: str) -> Owner | None:
    """Return the process that a file's name identifies; None if it identifies none."""
    found = _OWNED.fullmatch(name)
    return Owner(int(found[1]), int(found[2]), found[3], found[4]) if found else None


def temporary(path: Path) -> Path:
    """Return a hidden path beside `path`, to write to and then rename.

    The first call for a folder also removes what killed processes of this machine left there.
    """
    _sweep_once(path.parent)
    return path.with_name(f".{path.name[:32]}.{tag()}.tmp")


def final_name(path: str) -> str:
    """Return a path with temporary names replaced by the names that they stand for."""
    return "/".join(_TEMPORARY.sub(r"\1", part) for part in path.split("/"))


def sweep(folder: Path, *, locked: bool = False) -> None:
    """Remove temporary files whose process has ended.

    Args:
        folder: the folder; subfolders are not searched.
        locked: whether no other process can be writing there; then remove those of other machines
            too.
    """
    for path in _listed(folder):
        owner = owner_of(path.name) if _TEMPORARY.fullmatch(path.name) else None
        ours = locked and (owner is not None or _OLDER.fullmatch(path.name) is not None)
        if ours or (owner is not None and owner.dead):
            remove(path)


def leftovers(dest: Path) -> list[Path]:
    """Return the temporary files for `dest` that `sweep` has left."""
    return [
        path
        for path in _listed(dest.parent)
        if path.name.startswith(f".{dest.name[:32]}.")
        and (_TEMPORARY.fullmatch(path.name) or _OLDER.fullmatch(path.name))
    ]


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with its content; ignore errors."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


@cache
def _sweep_once(folder: Path) -> None:
    sweep(folder)


def _listed(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if name.startswith(".")]
    except OSError:
        return []


def _about(pid: int) -> tuple[str, int] | None:
    """Return the state and the start of a process; None where /proc does not tell."""
    try:
        words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return words[0].decode(), int(words[19])
    except (OSError, ValueError, IndexError):
        return None


@cache
def _machine() -> str:
    """Return a hash of boot id and pid namespace; two machines may share a host name."""
    told = socket.gethostname()
    with contextlib.suppress(OSError):
        told = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        told += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(told.encode()).hexdigest()[:8]
