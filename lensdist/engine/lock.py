"""One process writes a run's folder at a time (torch-free)."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lensdist.errors import Busy


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder; however the process ends, the kernel lets go of it.

    Two runs in one folder would delete each other's checkpoints as leavings of a lost life.

    Raises:
        Busy: another process holds it.
    """
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise Busy(
                    f"another run is writing to {folder}; wait for it, or give another run.dir"
                ) from e
            # Some cluster file systems know no locks: better to run without one than not at all.
        yield
    finally:
        os.close(handle)
