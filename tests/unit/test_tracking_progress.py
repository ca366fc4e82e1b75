"""The progress line, with a clock and a stream of our own."""

import io
import re
from typing import Any

import pytest

from lensdist.tracking.progress import Progress, _duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def made(stream: io.StringIO, **more: Any) -> tuple[Progress, Clock]:
    clock = Clock()
    return Progress(1000, stream=stream, clock=clock, every=10, **more), clock


def test_plain_lines_are_aligned_and_some_seconds_apart() -> None:
    stream = io.StringIO()
    progress, clock = made(stream)
    for step in range(1, 1001):
        clock.now += 0.5
        progress.update(step, 64 * step, epoch=step / 100, loss=1 / step, lr=1e-4)
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 51  # 500 s / 10 s, and the last step
    assert lines[1] == (
        "step   21/1000   2%  epoch   0.21       128 img/s  left  0:08:10"
        "  loss 0.04762    lr 1.00e-04"
    )
    assert lines[-1].startswith("step 1000/1000 100%")
    assert "\r" not in stream.getvalue()
    assert len({line.index("loss") for line in lines}) == 1


def test_live_line_rewrites_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    progress, clock = made(stream)
    for step in (1, 2):
        clock.now += 1
        progress.update(step, 64 * step, epoch=0.5, loss=1.0, lr=1e-3, accuracy=0.5)
    progress.note("saved step 2")
    progress.close()
    screen = stream.getvalue()
    assert screen.count("\n") == 2
    assert screen.endswith("\n")
    assert all(len(line) < 60 for line in re.split(r"[\r\n]", screen.replace("\x1b[K", "")))
    assert "\r\x1b[Ksaved step 2\nstep    2/1000" in screen


def test_dumb_terminals_get_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    progress, _ = made(stream)
    progress.update(1, 1)
    assert "\r" not in stream.getvalue()


def test_rate_is_of_the_window_and_of_training_alone() -> None:
    progress, clock = made(io.StringIO(), window=4)
    assert progress.images_per_s is None
    assert progress.seconds_left is None
    for step in range(1, 11):
        clock.now += 10 if step < 5 else 1  # a slow start is forgotten
        progress.update(step, 100 * step)
    assert progress.images_per_s == pytest.approx(100)
    assert progress.seconds_left == pytest.approx(990)
    with progress.paused():
        clock.now += 50
    clock.now += 1
    progress.update(11, 1100)
    assert progress.images_per_s == pytest.approx(100)
    assert progress.seconds_left == pytest.approx(989 * 54 / 4)  # the time left does count it


def test_a_resumed_run_counts_only_its_own_images() -> None:
    progress, clock = made(io.StringIO(), step=500, images=50_000)
    clock.now += 2
    progress.update(510, 51_000)
    assert progress.images_per_s == pytest.approx(500)
    assert progress.seconds_left == pytest.approx(98)


def test_other_ranks_are_silent() -> None:
    stream = io.StringIO()
    progress, clock = made(stream, enabled=False)
    clock.now += 1
    progress.update(1, 10)
    progress.note("hello")
    progress.close()
    assert stream.getvalue() == ""
    assert progress.images_per_s == 10


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_closed_pipe_stops_nothing() -> None:
    progress, _ = made(Broken())
    progress.update(1, 10)
    progress.update(1000, 20)
    progress.note("hello")
    progress.close()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (3661, "1:01:01"), (90_000, "1d 01h"), (59.6, "0:01:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert _duration(seconds) == text
