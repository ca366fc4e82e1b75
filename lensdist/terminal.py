"""Text of strangers on a terminal: control characters are shown, never carried out (torch-free).

A class folder, a preset or a file name may hold the bytes that move a cursor, colour a screen, hide
a line or turn the direction of writing. Commands print through `escaped_output`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# C0 and C1 controls, DEL, what turns the direction of text, separators of lines, and the halves of
# characters by which Python keeps bytes that are not UTF-8.
_CONTROL = r"\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_ANY = re.compile(f"[{_CONTROL}]")
# What commands print themselves stays: lines, tabs, a line drawn again (\r) and cleared (\x1b[K).
_FOREIGN = re.compile(rf"(\x1b\[K|[\t\n\r])|[{_CONTROL}]")


def printable(text: str) -> str:
    r"""Text in one line: each control character as its escape, a newline as `\n`."""
    return _ANY.sub(lambda found: _escape(found[0]), text)


@contextmanager
def escaped_output() -> Iterator[None]:
    """Escape control characters in all that is printed meanwhile, apart from line ends and tabs."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_Escaped, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Escaped:
    """A text stream whose `write` escapes; everything else is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(_FOREIGN.sub(lambda found: found[1] or _escape(found[0]), text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
