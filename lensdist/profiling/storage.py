"""Speed of a folder's file system, measured with files of its own, which are removed."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

_MB = 64
_FILES = 100


@dataclass(frozen=True)
class Storage:
    """What was measured: free space in GB, MB/s written (with fsync) and read, files made per s."""

    free_gb: float
    write_mb: float
    read_mb: float
    files: float


def measure(folder: Path) -> Storage:
    """Measure the file system of `folder` with 64 MB and a hundred small files.

    Reading mostly measures the page cache where the system does not drop it on request.

    Raises:
        OSError: the folder is not there, or cannot be written.
    """
    free = shutil.disk_usage(folder).free / 1e9
    with tempfile.TemporaryDirectory(prefix=".lensdist-", dir=folder) as made:
        big, block = Path(made) / "big", os.urandom(2**20)  # compression would flatter zeros
        began = time.perf_counter()
        with big.open("wb") as file:
            for _ in range(_MB):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            wrote = time.perf_counter() - began
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        with big.open("rb") as file:
            while file.read(2**20):
                pass
        read = time.perf_counter() - began
        began = time.perf_counter()
        for number in range(_FILES):
            (Path(made) / str(number)).write_bytes(b"")
        made_files = time.perf_counter() - began
    return Storage(free, _MB / wrote, _MB / read, _FILES / made_files)
