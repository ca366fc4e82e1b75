"""Tracebacks and logs, cut to what says something."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.monitor.evidence import error_lines, killed_process, short_traceback

pytestmark = pytest.mark.unit

_HEAD = "Traceback (most recent call last):\n"
_OURS = '  File "/a/lensdist/{0}.py", line 1, in f\n    {0}()\n    ^^^\n'
_THEIRS = '  File "/a/lib/python3.11/site-packages/torch/{0}.py", line 2, in g\n    {0}()\n'


def test_a_traceback_is_a_line_a_frame_and_lacks_libraries_first() -> None:
    text = _HEAD + _OURS.format("a") + 9 * _THEIRS.format("b") + _OURS.format("c")
    text += _THEIRS.format("d") + "ValueError: no\n"
    assert len(short_traceback(text, 12)) == 12
    assert short_traceback(text, 11) == [
        "lensdist/a.py:1 in f:  a()",
        "… 9 more",
        "lensdist/c.py:1 in f:  c()",
        "torch/d.py:2 in g:  d()",
    ]
    assert short_traceback(text, 3) == ["… 10 more", *short_traceback(text, 11)[2:]]
    assert short_traceback("", 9) == []


def test_a_traceback_is_the_last_exceptions_and_names_its_cause() -> None:
    text = f"{_HEAD}{_OURS.format('a')}KeyError: 'k'\n\nDuring handling of the above exception, "
    text += f"another exception occurred:\n\n{_HEAD}{_OURS.format('b')}OSError: 5\n\nThe above "
    text += "exception was the direct cause of the following exception:\n\n"
    text += f"{_HEAD}{_OURS.format('c')}RunError: no\n"
    assert short_traceback(text, 9) == ["lensdist/c.py:1 in f:  c()", "because of OSError: 5"]


def test_a_log_is_cut_to_what_is_no_launchers_frame_or_ornament(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "submitit INFO (2026-11-24) - Starting\nstep   40/200  20%  epoch 4.00\n\n=====\n"
        f"error: \x1b[31mno lenses\there\n{_HEAD}{_THEIRS.format('run')}{_OURS.format('a')}"
        "E1124 12:06:18.369 28 torch/distributed/elastic/api.py:2] failed (exitcode: -11) "
        "local_rank: 3 (pid: 8)\n  exitcode  : -11 (pid: 8)\nRoot Cause (first observed failure):\n"
    )
    assert error_lines(log, 9) == [
        "error: no lenses here",
        '  File "/a/lensdist/a.py", line 1, in f',
        "    a()",
        "failed (exitcode: -11) local_rank: 3 (pid: 8)",
    ]
    assert error_lines(log, 1) == error_lines(log, 9)[-1:]
    assert killed_process(log) == ("3", "0:11")
    log.write_text("failed (exitcode: 1) local_rank: 3 (pid: 8)\n")
    assert killed_process(log) is None
    assert killed_process(tmp_path / "none") is None
