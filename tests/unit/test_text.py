"""Numbers, durations, lists and tables as text."""

from __future__ import annotations

import pytest

from lensdist.utils.text import counted, duration, some, table

pytestmark = pytest.mark.unit


def test_lists_numbers_and_tables() -> None:
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some("abcde") == "a, b, c and 2 more"
    assert some([1, 2, 3], 1) == "1 and 2 more"
    assert [counted(1, "GPU"), counted(2, "process")] == ["1 GPU", "2 processes"]
    assert table([("a", "b"), ("long", "")]) == "a     b\nlong"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min"),
        (3599, "1:00 h"),
        (7800, "2:10 h"),
        (2 * 86400 - 1, "2 d 0 h"),
        (273600, "3 d 4 h"),
        (-3, "0 s"),
        (-7200, "? (clock set back)"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
