"""`lensdist.train` on a disk that is full at some steps: `full_disk.py S,S KILL -- arguments`.

The process gets SIGKILL right after optimizer step KILL.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

from lensdist.train import main
from lensdist.training import checkpoint
from tests.faults.killer import arm


def refuse(steps: set[int]) -> None:
    write = checkpoint.write_safetensors

    def half(path: Path, tensors: Any) -> Any:
        if int(path.parent.name.split("-")[1].split(".")[0]) in steps:
            path.write_bytes(b"as far as it went")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, tensors)

    checkpoint.write_safetensors = half


if __name__ == "__main__":
    split = sys.argv.index("--")
    refuse({int(step) for step in sys.argv[1].split(",")})
    arm("step", int(sys.argv[2]))
    sys.exit(main(sys.argv[split + 1 :]))
