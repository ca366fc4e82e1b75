"""Standard output and error that may be closed, and escape control characters (torch-free).

`lensdist … | head -1` and `2>&-` must not change what a command does, or its exit code. Python
raises an error where something is printed, and again when it flushes at its end (exit code 120).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from lensdist.utils.files import printable

# Control characters of the commands themselves: lines, tabs, a line that is written again.
_OWN = re.compile(r"(\x1b\[K|[\t\n\r])")


def escaped(text: str) -> str:
    r"""Return a text with its control characters, which a file may hold, as escapes (\x1b)."""
    parts = _OWN.split(text)  # the odd ones are our own
    return "".join(part if i % 2 else printable(part) for i, part in enumerate(parts))


class Stream:
    """A text stream whose writes never raise; it escapes control characters.

    Args:
        stream: what is written to.
        escapes: False if the writer itself escapes text from files, and moves the cursor.

    Attributes:
        lost: the first error, after which nothing is written; None: there was no error.
    """

    def __init__(self, stream: TextIO, *, escapes: bool = True) -> None:
        self._stream, self._escapes = stream, escapes
        self.lost: OSError | None = None

    def unescaped(self) -> Stream:
        """Return the same stream for a writer that moves the cursor."""
        return Stream(self._stream, escapes=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._tolerant():
            self._stream.write(escaped(text) if self._escapes else text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._tolerant():
            self._stream.flush()

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except UnicodeEncodeError as error:  # a file's name need not be text
            self.write(error.object.encode("ascii", "backslashreplace").decode())
        except (OSError, ValueError) as error:  # ValueError: somebody has closed it
            lost = error if isinstance(error, OSError) else OSError(errno.EBADF, str(error))
            self.lost = self.lost or lost
            with contextlib.suppress(OSError, ValueError):
                _to_nowhere(self._stream.fileno())  # what it still holds is flushed there


@contextlib.contextmanager
def tolerant() -> Iterator[None]:
    """Let nothing that is printed inside raise an error."""
    before = sys.stdout, sys.stderr
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            _open_nowhere(number, name)
    if not isinstance(sys.stdout, Stream):
        sys.stdout = cast(TextIO, Stream(sys.stdout))
    if not isinstance(sys.stderr, Stream):
        sys.stderr = cast(TextIO, Stream(sys.stderr))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = (
            now if was is None else was
            for was, now in zip(before, (sys.stdout, sys.stderr), strict=True)
        )


def output_lost() -> str | None:
    """Return why a part of standard output was lost; None if its reader has closed it."""
    sys.stdout.flush()
    lost = getattr(sys.stdout, "lost", None)
    if lost is None or lost.errno in (errno.EPIPE, errno.EBADF):
        return None
    return str(lost.strerror or lost)


def _open_nowhere(number: int, name: str) -> None:
    """Open it, or the next file that is opened gets its number, and what C code prints."""
    try:
        os.fstat(number)
    except OSError:
        _to_nowhere(number)
    setattr(sys, name, open(os.devnull, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: SIM115


def _to_nowhere(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, number)
    if null != number:
        os.close(null)
