"""Set-up of Python's `logging` for commands: level, format and rank (torch-free).

Modules use `log = logging.getLogger(__name__)`. Nothing is configured at import: an entry point
opens `to_stderr`, and a program that has configured logging itself keeps its own handlers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

from lensdist.utils.errors import UserError, process

LEVEL = "LENSDIST_LOG"
"""The environment variable with the lowest level that is shown."""
LEVELS = ("debug", "info", "warning", "error")
ANY_RANK = {"any_rank": True}
"""The `extra` of a message that a process writes whatever its rank."""
_LINE = "%(asctime)s %(levelname)s%(who)s %(message)s"  # `who`: ` rank 3:`, if there are several


@contextlib.contextmanager
def to_stderr() -> Iterator[None]:
    """Write the package's messages to standard error inside, unless logging is configured.

    The main process writes all messages. Other processes repeat most of them, so they write only
    errors and messages with `ANY_RANK`.

    Raises:
        UserError: `LENSDIST_LOG` is not a level.
    """
    package = logging.getLogger("lensdist")
    if package.hasHandlers():
        yield
        return
    level = os.environ.get(LEVEL) or "info"
    if level not in LEVELS:
        raise UserError(f"{LEVEL}={level} is not a level; give {', '.join(LEVELS)}")
    handler = _Stderr()
    handler.setFormatter(logging.Formatter(_LINE, "%Y-%m-%d %H:%M:%S"))
    before = package.level, package.propagate
    package.addHandler(handler)
    package.setLevel(level.upper())
    package.propagate = False  # a library may give the root logger a handler later
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(before[0])
        package.propagate = before[1]


class _Stderr(logging.Handler):
    """A handler that writes to the current `sys.stderr`, and does nothing if that is closed."""

    def emit(self, record: logging.LogRecord) -> None:
        rank, size = process()
        if not (rank == 0 or record.levelno >= logging.ERROR or hasattr(record, "any_rank")):
            return
        record.__dict__["who"] = f" rank {rank}:" if size > 1 else ""
        # One write, so that the lines of several threads and processes do not mix.
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or None
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
