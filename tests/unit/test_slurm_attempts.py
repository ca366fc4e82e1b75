"""The record of attempts: it only grows, and a torn line costs that line alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.attempts import AttemptLog, attempts

pytestmark = pytest.mark.unit


def test_events_come_back_in_order(tmp_path: Path) -> None:
    attempt_log = AttemptLog(tmp_path / "ledger" / "pretrain.jsonl")
    assert attempt_log.events() == []
    attempt_log.append("sent", "7", "s")
    attempt_log.append("started", "7", "s", attempt=1, nodes=["n1", "n2"])
    attempt_log.append("ended", "7", "s", attempt=1, step=4, verdict="requeue", excluded=["n2"])
    attempt_log.append("started", "7", "s", attempt=2, nodes=["n1"], step=4)
    assert [e.what for e in attempt_log.events()] == ["sent", "started", "ended", "started"]
    first, second = attempts(attempt_log.events())
    assert (first.started.nodes, first.ended and first.ended.excluded) == (("n1", "n2"), ("n2",))
    assert second.ended is None
    assert attempt_log.path.stat().st_mode & 0o077 == 0


def test_a_torn_line_is_passed_over_and_never_glued_to(tmp_path: Path) -> None:
    attempt_log = AttemptLog(tmp_path / "l.jsonl")
    attempt_log.append("sent", "7", "s")
    with attempt_log.path.open("ab") as file:
        file.write(b'{"what": "started", "ti')
    attempt_log.append("sent", "8", "s")
    assert [e.job for e in attempt_log.events()] == ["7", "8"]


def test_the_last_word_on_an_attempt_counts(tmp_path: Path) -> None:
    attempt_log = AttemptLog(tmp_path / "l.jsonl")
    attempt_log.append("started", "7", "s", attempt=1)
    attempt_log.append("ended", "7", "s", attempt=1, verdict="requeue")
    attempt_log.append("ended", "7", "s", attempt=1, verdict="stop", reason="SLURM refused")
    (only,) = attempts(attempt_log.events())
    assert only.ended is not None
    assert only.ended.verdict == "stop"


def test_a_late_end_is_not_the_next_attempt_s(tmp_path: Path) -> None:
    attempt_log = AttemptLog(tmp_path / "l.jsonl")
    for attempt in (1, 2):
        attempt_log.append("started", "7", "s", attempt=attempt)
    attempt_log.append("ended", "7", "s", attempt=1, verdict="requeue")
    assert [one.ended for one in attempts(attempt_log.events())] == [None, None]
