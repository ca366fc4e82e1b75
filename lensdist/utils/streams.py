"""Standard streams that may be closed, and that escape control characters (torch-free).

`lensdist … | head -1` and `2>&-` must not change the work or the exit code of a command. Without
these streams Python raises at a print, and again when it flushes at its end (exit code 120).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from lensdist.utils.files import printable

# The control characters that commands print: ends of lines, tabs, erasing a line.
_OWN = re.compile(r"(\x1b\[K|[\t\n\r])")


def escaped(text: str) -> str:
    r"""Return a text with the control characters of others, as in file names, escaped (\x1b)."""
    parts = _OWN.split(text)  # the odd parts are our own control characters
    return "".join(part if i % 2 else printable(part) for i, part in enumerate(parts))


class Stream:
    """A text stream whose writes never raise; it escapes control characters.

    Args:
        stream: the stream to write to.
        escapes: False for a writer that moves the cursor and escapes foreign text itself.

    Attributes:
        lost: the first error, after which nothing is written; None if there was none.
    """

    def __init__(self, stream: TextIO, *, escapes: bool = True) -> None:
        self._stream, self._escapes = stream, escapes
        self.lost: OSError | None = None

    def unescaped(self) -> Stream:
        """Return the same stream without escapes, for a writer that moves the cursor."""
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
        except UnicodeEncodeError as error:  # a file's name may hold bytes that are not text
            self.write(error.object.encode("ascii", "backslashreplace").decode())
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            lost = error if isinstance(error, OSError) else OSError(errno.EBADF, str(error))
            self.lost = self.lost or lost
            with contextlib.suppress(OSError, ValueError):
                _to_nowhere(self._stream.fileno())  # so that flushing its buffer cannot fail


@contextlib.contextmanager
def tolerant() -> Iterator[None]:
    """Let no print inside raise an error."""
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


def counter() -> Callable[[str, int, int], None]:
    """Return a function that counts things on a terminal, and is silent elsewhere.

    It takes what was done (`packed`), the number so far and the number in all, and writes five
    times a second at most.
    """
    last = 0.0

    def show(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if sys.stderr.isatty() and (now - last > 0.2 or done == total):
            last, end = now, "\n" if done == total else ""
            print(f"\r{what} {done:,} of {total:,}", end=end, file=sys.stderr, flush=True)

    return show


def output_lost() -> str | None:
    """Return why output was lost; None if nothing was, or if only the reader closed it."""
    sys.stdout.flush()
    lost = getattr(sys.stdout, "lost", None)
    if lost is None or lost.errno in (errno.EPIPE, errno.EBADF):
        return None
    return str(lost.strerror or lost)


def _open_nowhere(number: int, name: str) -> None:
    """Open a stream that is missing; else the next file gets its number and C code's output."""
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
