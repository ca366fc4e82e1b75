"""What follows from the end of an attempt, for every way that one can end."""

from __future__ import annotations

from typing import Any

import pytest

from lensdist.utils.outcome import Kind, Outcome
from slurm.attempts import Attempt, Event, Verdict
from slurm.config.cluster import Requeue
from slurm.job_side.requeue_policy import Decision, End, decide

pytestmark = pytest.mark.unit

POLICY = Requeue(limit=5, crashes=3, backoff=30)


def _word(kind: Kind, error: str = "it broke", rank: int = 0, host: str = "n1") -> Outcome:
    return Outcome(kind=kind, rank=rank, host=host, time=rank, error=error)


def _past(*steps: tuple[int, int], verdict: Verdict | None = "requeue") -> list[Attempt]:
    """Attempts that went from one step to another, and how they ended (None: they did not)."""
    found = []
    for number, (first, last) in enumerate(steps, start=1):
        common: dict[str, Any] = {"time": number, "job": "7", "submission": "s", "attempt": number}
        ended = Event(what="ended", step=last, verdict=verdict, **common) if verdict else None
        found.append(Attempt(started=Event(what="started", step=first, **common), ended=ended))
    return found


def _decide(*outcomes: Outcome, past: list[Attempt] | None = None, **end: Any) -> Decision:
    return decide(
        End(**{"reached": False, "code": 1, "outcomes": outcomes, **end}), past or [], POLICY
    )


def test_complete_is_done_whatever_the_code() -> None:
    assert _decide(_word("crashed"), reached=True, code=134).verdict == "done"


def test_saved_is_queued_again_at_once() -> None:
    for state in ("RUNNING", "TIMEOUT"):
        found = _decide(_word("saved"), before=5, now=9, state=state, code=75)
        assert (found.verdict, found.delay, found.exclude) == ("requeue", 0, ())
        assert "saved at step 9" in found.reason


@pytest.mark.parametrize(
    "ended", [{"state": "CANCELLED"}, {"cancelled": True}, {"cancelled": True, "state": "TIMEOUT"}]
)
def test_cancelled_is_never_queued_again(ended: dict[str, Any]) -> None:
    found = _decide(_word("saved"), before=5, now=9, code=75, **ended)
    assert found.verdict == "leave"
    assert "cancelled; saved at step 9" in found.reason


@pytest.mark.parametrize(
    "ended",
    [{"state": "PENDING"}, {"state": "NODE_FAIL"}, {"requeued": True, "state": "CANCELLED"}],
)
def test_what_slurm_has_decided_is_left_to_it(ended: dict[str, Any]) -> None:
    assert _decide(_word("saved"), before=5, now=9, code=75, **ended).verdict == "leave"


def test_what_the_run_itself_gives_up_is_not_tried_again() -> None:
    for kind in ("input", "failed"):
        found = _decide(_word(kind, "the loss is nan at step 7"))
        assert (found.verdict, found.kind) == ("stop", kind)
        assert found.reason == "the loss is nan at step 7 (process 0 on n1)"
    assert _decide(_word("crashed", "OutOfMemoryError: CUDA out of memory")).verdict == "stop"


def test_a_crash_waits_longer_each_time_and_is_given_up() -> None:
    delays, past = list[float](), list[Attempt]()
    for number in range(1, 4):
        found = _decide(_word("crashed"), past=past, before=4, now=4)
        delays.append(found.delay)
        past = _past(*[(4, 4)] * number)
    assert delays[:2] == [30, 60]
    assert found.verdict == "stop"
    assert "3 attempts in a row ended without a new checkpoint" in found.reason


def test_a_checkpoint_between_crashes_starts_the_count_anew() -> None:
    found = _decide(_word("crashed"), past=_past((0, 0), (0, 0), (0, 20)), before=20, now=20)
    assert (found.verdict, found.delay) == ("requeue", 30)
    assert _decide(_word("crashed"), past=_past((0, 0), (0, 0)), before=0, now=9).delay == 30


def test_what_slurm_took_away_counts_as_nobodys_crash() -> None:
    lost = _past((4, 4), (4, 4), (4, 4), verdict=None)
    assert _decide(_word("crashed"), past=lost, before=4, now=4).delay == 30


def test_the_limit_holds_for_every_end() -> None:
    past = _past(*[(i, i + 1) for i in range(5)])
    found = _decide(_word("saved"), past=past, before=5, now=6, code=75)
    assert found.verdict == "stop"
    assert "attempt 6 since it was sent, the last allowed" in found.reason


def test_an_unfit_node_is_left_out_and_not_waited_for() -> None:
    found = _decide(nodes=2, unfit={"n2": "n2 has 1 GPU, not 4"}, before=0, now=0)
    assert (found.verdict, found.kind) == ("requeue", "device")
    assert (found.exclude, found.delay) == (("n2",), 0)
    found = _decide(_word("device", "wrong product", host="n3"), nodes=2)
    assert found.exclude == ("n3",)


def test_what_ails_all_nodes_is_no_nodes_fault() -> None:
    found = _decide(nodes=2, unfit={"n1": "disk full", "n2": "disk full"})
    assert (found.verdict, found.exclude, found.delay) == ("requeue", (), 30)


def test_what_other_nodes_would_meet_too_waits_and_blames_no_node() -> None:
    full = {"n1": "n1 finds the disk full"}
    found = _decide(nodes=1, shared=full)
    assert (found.verdict, found.kind) == ("requeue", "device")
    assert (found.exclude, found.delay) == ((), 30)
    assert found.reason == "node check failed: n1 finds the disk full"
    assert _decide(shared=full, past=_past((0, 0))).delay == 60
    assert _decide(shared=full, past=_past((0, 0), (0, 0))).verdict == "stop"
    found = _decide(nodes=2, shared=full, unfit={"n2": "n2 has no GPU"})
    assert (found.exclude, found.delay) == (("n2",), 30)
    assert found.reason == "node check failed: n2 has no GPU"


def test_a_survivor_of_the_last_attempt_is_waited_for() -> None:
    busy = _word("busy", "another run is writing to finetune")
    found = _decide(busy, code=2)
    assert (found.verdict, found.kind, found.delay) == ("requeue", "busy", 30)
    assert _decide(busy, code=2, past=_past((0, 0))).delay == 60
    assert _decide(busy, code=2, past=_past((0, 0), (0, 0))).verdict == "stop"


def test_unfit_nodes_are_not_looked_for_for_ever() -> None:
    found = _decide(nodes=1, unfit={"n9": "no GPU"}, past=_past((0, 0), (0, 0)))
    assert found.verdict == "stop"


def test_whoever_left_no_word_is_named_before_those_who_fell_over_it() -> None:
    found = _decide(_word("crashed", "connection closed"), missing=[(2, "n2"), (3, "n2")])
    assert found.kind == "silent"
    assert found.reason.startswith("process 2 on n2 left no exit report")
    assert _decide(code=137).reason == "ended with code 137, without an exit report"


def test_saving_without_getting_on_is_a_loop_too() -> None:
    found = _decide(_word("saved"), past=_past((3, 3), (3, 3)), before=3, now=3, code=75)
    assert found.verdict == "stop"
