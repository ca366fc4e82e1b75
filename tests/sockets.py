"""Where a process listens, as Linux says it."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path


def listeners(process: int) -> set[tuple[str, int]]:
    """(address, port) of every TCP socket on which a process listens."""
    owned = set()
    for file in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):
            owned.add(os.readlink(file))
    found = set()
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in owned:
                address, _, port = words[1].partition(":")
                groups = [
                    bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)
                ]
                found.add((socket.inet_ntop(family, b"".join(groups)), int(port, 16)))
    return found


def children(process: int) -> list[int]:
    """A process and all that descend from it."""
    with contextlib.suppress(OSError):
        own = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        return [process, *(found for child in own for found in children(int(child)))]
    return []
