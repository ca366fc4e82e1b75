"""Progress, with a clock and a stream of our own."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from lensdist.tracking.progress import Progress
from lensdist.utils.logs import to_stderr
from lensdist.utils.streams import tolerant

pytestmark = pytest.mark.unit


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Closed(Terminal):
    """What a terminal is once its window is gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def fileno(self) -> int:
        raise OSError


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TERM", "xterm")
    with tolerant(), to_stderr():
        yield


def made(stream: io.StringIO | None = None, **more: Any) -> tuple[Progress, Clock]:
    clock = Clock()
    return Progress(1000, stream=stream or io.StringIO(), clock=clock, **more), clock


FIGURES = {"epoch": 0.5, "loss": 0.25, "lr": 1e-3, "images_per_s": 128.0, "grad_norm": 0.125}
MORE = {"memory_gb": 3.25, "mfu": 0.375, "data_wait": 0.02}


def screen(written: str, width: int) -> list[str]:
    """The lines that a terminal shows in the end."""
    rows, y, x = [""], 0, 0
    for argument, command, text in re.findall(r"\x1b\[([?0-9;]*)([A-Za-z])|(.)", written, re.S):
        if command == "A":
            y -= int(argument or 1)
        elif command == "K":
            rows[y] = "" if argument == "2" else rows[y][:x]
        elif text == "\r":
            x = 0
        elif text and (text == "\n" or x == width):
            y, x = y + 1, 0
            rows += [""] * (y + 1 - len(rows))
        if text and text not in "\r\n":
            rows[y] = rows[y][:x].ljust(x) + text + rows[y][x + 1 :]
            x += 1
    return [row.rstrip() for row in rows]


def test_lines_elsewhere_are_aligned_and_some_seconds_apart(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress, clock = made()
    for step in range(1, 1001):
        clock.now += 0.5
        progress.mark(step, 64 * step)
        progress.show({**FIGURES, "loss": 1 / step, "mfu": None})
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 51  # 500 s / 10 s, and the last step
    assert lines[1].split(" INFO ")[1] == (
        "step   21/1000   2%  left    8 min  epoch   0.50       128 img/s  loss 0.04762"
        "    lr 1.00e-03  grad 0.125"
    )
    assert "step 1000/1000 100%" in lines[-1]
    assert all(line.isprintable() for line in lines)
    assert len({line.index("loss") for line in lines}) == 1


@pytest.mark.parametrize("width", [100, 20])
def test_a_terminal_of_any_width_shows_every_figure_once(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    stream, before = Terminal(), sys.stderr
    progress, clock = made(stream)
    for step in (1, 2, 1000):
        clock.now += 1
        progress.mark(step, 64 * step)
        progress.show({**FIGURES, **MORE})
        if step < 3:
            print(f"saved {step} \x1b[31m", file=sys.stderr)
    progress.close()
    rows = screen(stream.getvalue(), width)
    assert rows[:3] == [r"saved 1 \x1b[31m", r"saved 2 \x1b[31m", "━" * width]
    assert all(len(row) <= width for row in rows)
    figures = " ".join(" ".join(rows[3:]).split())
    assert figures == (
        "step 1000/1000 100% left 0 s epoch 0.50 128 img/s loss 0.25 lr 1.00e-03 grad 0.125 "
        "mem 3.2 GB mfu 38% data 2%"
    )
    assert stream.getvalue().endswith("\x1b[?25h")  # the cursor is there again
    assert sys.stderr is before


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    term: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", term)
    stream = Terminal()
    progress, _ = made(stream)
    progress.mark(1, 1)
    progress.show(FIGURES)
    assert stream.getvalue() == ""
    assert "step    1/1000" in capsys.readouterr().err


def test_the_rate_is_of_the_window_and_of_training_alone() -> None:
    progress, clock = made(window=4)
    assert progress.images_per_s is None
    assert progress.seconds_left is None
    for step in range(1, 11):
        clock.now += 10 if step < 5 else 1  # a slow start is forgotten
        assert progress.mark(step, 100 * step) == (10 if step < 5 else 1)
    assert progress.images_per_s == pytest.approx(100)
    assert progress.seconds_left == pytest.approx(990)
    with progress.paused():
        clock.now += 50
    clock.now += 1
    assert progress.mark(11, 1100) == 1
    assert progress.images_per_s == pytest.approx(100)
    assert progress.seconds_left == pytest.approx(989 * 54 / 4)  # the time left does count it


def test_a_resumed_run_counts_only_its_own_images() -> None:
    progress, clock = made(step=500, images=50_000)
    clock.now += 2
    progress.mark(510, 51_000)
    assert progress.images_per_s == pytest.approx(500)
    assert progress.seconds_left == pytest.approx(98)


def test_a_closed_terminal_stops_nothing() -> None:
    progress, _ = made(Closed())
    for step in (1, 1000):
        progress.mark(step, step)
        progress.show(FIGURES)
    print("hello", file=sys.stderr)
    progress.close()
