"""What follows from the end of an attempt, for every way that one can end."""

from __future__ import annotations

from typing import Any

import pytest

from lensdist.utils.outcome import Outcome
from slurm.attempts import Attempt, Event
from slurm.config.cluster import Requeue
from slurm.job_side.requeue_policy import PREEMPTED, Decision, End, decide

pytestmark = pytest.mark.unit

POLICY = Requeue(limit=5, crashes=3, backoff=30)
GPU = "OutOfMemoryError: CUDA out of memory"
SAVED = {"before": 5, "now": 9, "code": 75}
FULL = {"n1": "n1 finds the disk full"}
NO_GPU = {"n2": "n2 has no GPU"}
NONE: list[tuple[int, int]] = []


def _report(kind: str = "crashed", error: str = "it broke", host: str = "n1") -> Outcome:
    return Outcome.model_validate(
        {"kind": kind, "rank": 0, "host": host, "time": 0, "error": error}
    )


def _past(steps: list[tuple[int, int]], verdict: str | None = "requeue") -> list[Attempt]:
    """Return attempts from one step to another, and how they ended (None: they did not)."""
    found = []
    for number, (first, last) in enumerate(steps, start=1):
        common: dict[str, Any] = {"time": number, "job": "7", "submission": "s", "attempt": number}
        ended = {"what": "ended", "step": last, "verdict": verdict, **common} if verdict else None
        started = Event(what="started", step=first, **common)
        found.append(Attempt.model_validate({"started": started, "ended": ended}))
    return found


def _decide(*outcomes: Outcome, past: list[Attempt] | None = None, **end: Any) -> Decision:
    given = {"reached": False, "code": 1, "outcomes": outcomes, **end}
    return decide(End(**given), past or [], POLICY)


@pytest.mark.parametrize(
    ("report", "end", "past", "verdict", "delay", "exclude", "kind"),
    [
        # Complete, whatever the exit code.
        (_report(), {"reached": True, "code": 134}, NONE, "done", 0, (), "done"),
        # Saved: at once, within the limit of attempts, and if it gets on.
        (_report("saved"), SAVED, NONE, "requeue", 0, (), "saved"),
        (_report("saved"), SAVED | {"state": "TIMEOUT"}, NONE, "requeue", 0, (), "saved"),
        (_report("saved"), SAVED, [(0, 1)] * 5, "stop", 0, (), "saved"),
        (_report("saved"), SAVED | {"now": 5}, [(5, 5)] * 2, "stop", 0, (), "saved"),
        # Cancelled, or decided by SLURM.
        (_report("saved"), SAVED | {"state": "CANCELLED"}, NONE, "leave", 0, (), "saved"),
        (_report("saved"), SAVED | {"cancelled": True}, NONE, "leave", 0, (), "saved"),
        (
            *(_report("saved"), SAVED | {"cancelled": True, "state": "TIMEOUT"}, NONE),
            *("leave", 0, (), "saved"),
        ),
        (_report("saved"), SAVED | {"state": "PENDING"}, NONE, "leave", 0, (), "saved"),
        (_report("saved"), SAVED | {"state": "NODE_FAIL"}, NONE, "leave", 0, (), "saved"),
        (_report("saved"), SAVED | {"requeued": True}, NONE, "leave", 0, (), "saved"),
        # Preempted: at once, and no crash, however often it comes before a checkpoint.
        (
            *(_report("saved"), SAVED | {"preempted": True, "state": "PREEMPTED"}, NONE),
            *("requeue", 0, (), "saved"),
        ),
        (None, {"preempted": True, "state": "PREEMPTED"}, NONE, "requeue", 0, (), "silent"),
        (None, {"preempted": True}, [(0, 0)] * 5, "stop", 0, (), "silent"),
        (
            *(_report("failed"), {"preempted": True, "state": "PREEMPTED"}, NONE),
            *("stop", 0, (), "failed"),
        ),
        (
            *(_report("saved"), SAVED | {"preempted": True, "cancelled": True}, NONE),
            *("leave", 0, (), "saved"),
        ),
        # The same again would end in the same way.
        (_report("input"), {}, NONE, "stop", 0, (), "input"),
        (_report("failed"), {}, NONE, "stop", 0, (), "failed"),
        (_report("crashed", GPU), {}, NONE, "stop", 0, (), "crashed"),
        (None, {"code": 74}, NONE, "stop", 0, (), "failed"),  # no room for a report
        # Crashes: longer pauses, then no more, unless there is a checkpoint between them.
        (_report(), {}, NONE, "requeue", 30, (), "crashed"),
        (_report(), {}, [(0, 0)], "requeue", 60, (), "crashed"),
        (_report(), {}, [(0, 0)] * 2, "stop", 0, (), "crashed"),
        (_report(), {"now": 9}, [(0, 0)] * 2, "requeue", 30, (), "crashed"),
        (
            *(_report(), {"before": 20, "now": 20}, [(0, 0), (0, 0), (0, 20)]),
            *("requeue", 30, (), "crashed"),
        ),
        # A process of the last attempt still holds the folder.
        (_report("busy"), {"code": 2}, NONE, "requeue", 30, (), "busy"),
        (_report("busy"), {"code": 2}, [(0, 0)] * 2, "stop", 0, (), "busy"),
        # Nodes: their own problems exclude them, at once; shared ones wait.
        (None, {"nodes": 2, "unfit": NO_GPU}, NONE, "requeue", 0, ("n2",), "device"),
        (_report("device", host="n3"), {"nodes": 2}, NONE, "requeue", 0, ("n3",), "device"),
        (None, {"unfit": NO_GPU}, [(0, 0)] * 2, "stop", 0, (), "device"),
        (None, {"nodes": 2, "unfit": NO_GPU | FULL}, NONE, "requeue", 30, (), "device"),
        (None, {"shared": FULL}, NONE, "requeue", 30, (), "device"),
        (None, {"shared": FULL}, [(0, 0)], "requeue", 60, (), "device"),
        (None, {"shared": FULL}, [(0, 0)] * 2, "stop", 0, (), "device"),
        (
            *(None, {"nodes": 2, "shared": FULL, "unfit": NO_GPU}, NONE),
            *("requeue", 30, ("n2",), "device"),
        ),
    ],
)
def test_what_follows(
    report: Outcome | None,
    end: dict[str, Any],
    past: list[tuple[int, int]],
    verdict: str,
    delay: float,
    exclude: tuple[str, ...],
    kind: str,
) -> None:
    found = _decide(*filter(None, [report]), past=_past(past), **end)
    assert (found.verdict, found.delay, found.exclude) == (verdict, delay, exclude)
    assert found.kind == kind


def test_attempts_that_slurm_ended_are_not_crashes() -> None:
    lost = _past([(4, 4)] * 3, verdict=None)
    assert _decide(_report(), past=lost, before=4, now=4).delay == 30


def test_preemptions_are_not_crashes() -> None:
    taken = _past([(4, 4)] * 2)
    taken = [
        a.model_copy(update={"ended": a.ended and a.ended.model_copy(update={"reason": PREEMPTED})})
        for a in taken
    ]
    assert _decide(_report(), past=taken, before=4, now=4).delay == 30


@pytest.mark.parametrize(
    ("report", "end", "reason"),
    [
        (_report("saved"), SAVED | {"preempted": True}, "preempted; saved at step 9"),
        (_report("saved"), SAVED, "asked to stop, and saved at step 9"),
        (_report("saved"), SAVED | {"cancelled": True}, "cancelled; saved at step 9"),
        (_report("failed", "the loss is nan"), {}, "the loss is nan (process 0 on n1)"),
        (None, {"shared": FULL}, f"node check failed: {FULL['n1']}"),
        (None, {"shared": FULL, "unfit": NO_GPU}, f"node check failed: {NO_GPU['n2']}"),
        (None, {"code": 137}, "ended with code 137, without an exit report"),
        # Whoever left no report ended first.
        (_report(), {"missing": [(2, "n2"), (3, "n2")]}, "process 2 on n2 left no exit report"),
    ],
)
def test_the_reason(report: Outcome | None, end: dict[str, Any], reason: str) -> None:
    found = _decide(*filter(None, [report]), **end)
    assert found.reason.startswith(reason)
    assert (found.kind == "silent") == ("missing" in end or end.get("code") == 137)
