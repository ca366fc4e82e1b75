"""Messages of commands: their lines, levels and processes, and who configures logging."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from lensdist.utils import errors, outcome
from lensdist.utils.logs import ANY_RANK, LEVEL, to_stderr
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

log = logging.getLogger("lensdist.training.somewhere")
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(LEVEL, raising=False)
    yield
    errors.set_rank(0)


def messages() -> int:
    log.debug("d")
    log.info("100%")
    log.warning("w %d", 1)
    log.warning("mine", extra=ANY_RANK)
    log.error("e")
    return 0


@pytest.mark.parametrize(
    ("rank", "size", "level", "told"),
    [
        (0, 1, "", ["INFO 100%", "WARNING w 1", "WARNING mine", "ERROR e"]),
        (0, 1, "debug", ["DEBUG d", "INFO 100%", "WARNING w 1", "WARNING mine", "ERROR e"]),
        (0, 1, "warning", ["WARNING w 1", "WARNING mine", "ERROR e"]),
        (0, 2, "error", ["ERROR rank 0: e"]),
        (3, 4, "debug", ["WARNING rank 3: mine", "ERROR rank 3: e"]),
    ],
)
def test_level_and_rank_decide_what_is_written(
    rank: int, size: int, level: str, told: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv(LEVEL, level)
    errors.set_rank(rank, size)
    assert outcome.conclude(messages) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert [re.sub(f"^{STAMP} ", "", line) for line in err.splitlines()] == told
    assert not logging.getLogger("lensdist").handlers  # nothing is left behind
    assert logging.getLogger("lensdist").propagate


def test_a_level_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LEVEL, "loud")
    assert outcome.conclude(messages) == 2
    assert f"{LEVEL}=loud" in capsys.readouterr().err


@pytest.mark.parametrize("owner", ["", "lensdist"])
def test_a_program_keeps_its_own_configuration(
    owner: str, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, stream = logging.getLogger(owner), io.StringIO()
    handler = logging.StreamHandler(stream)
    theirs.addHandler(handler)
    try:
        assert outcome.conclude(messages) == 0
    finally:
        theirs.removeHandler(handler)
    assert stream.getvalue().splitlines() == ["w 1", "mine", "e"]  # at Python's own level
    assert capsys.readouterr().err == ""


def test_strangers_text_is_escaped_and_a_traceback_is_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work() -> int:
        try:
            raise ValueError("inner")
        except ValueError:
            log.exception("label \x1b]0;owned\x07")
        return 0

    assert outcome.conclude(work) == 0
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.endswith(r"ERROR label \x1b]0;owned\x07")
    assert rest[-1] == "ValueError: inner"


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_closed_stream_changes_nothing(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed if stream else None)
    with to_stderr():
        messages()


def test_import_configures_nothing() -> None:
    code = (
        "import logging, lensdist, lensdist.utils.logs, lensdist.train\n"
        "found = [logging.root, *map(logging.getLogger, logging.root.manager.loggerDict)]\n"
        "assert not any(one.handlers for one in found if one.name.startswith(('root', 'lensdist')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_module_that_python_m_runs_names_its_logger_itself() -> None:
    """There it is called `__main__`, whose messages nobody shows."""
    folders = (ROOT / name for name in ("lensdist", "slurm", "experiments", "benchmarks"))
    modules = [path for folder in folders for path in folder.rglob("*.py")]
    run = [m for m in modules if "__main__" in m.name + m.read_text()]
    assert ROOT / "lensdist" / "train.py" in run
    assert not [m for m in run if "getLogger(__name__)" in m.read_text()]
