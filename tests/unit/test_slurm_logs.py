"""Logs: the end of the newest one, and what is added while somebody looks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lensdist.utils.errors import UserError
from slurm.monitor import logs
from slurm.monitor.logs import last_lines, print_logs
from tests.unit.standing import Standing, standing

pytestmark = pytest.mark.unit
__all__ = ["standing"]


def _logs(chain: Standing, *phases: str, **more: object) -> list[str]:
    said: list[str] = []
    print_logs(chain.targets, chain.state, phases, say=said.append, **more)  # type: ignore[arg-type]
    return said


def _follow(
    chain: Standing, *happens: Callable[[], object], pauses: int = 0, **more: object
) -> list[str]:
    """Follow while things happen, one at each pause; too many pauses are a failure."""
    todo: list[Callable[[], object]] = [*happens, *[lambda: None] * pauses]

    def sleep(seconds: float) -> None:
        assert 0 < seconds <= 1
        assert todo, "still waiting after all has happened"
        todo.pop(0)()

    return _logs(chain, "pretrain", follow=True, sleep=sleep, **more)


def _append(file: Path, text: str) -> Callable[[], object]:
    def happen() -> None:
        with file.open("a") as stream:
            stream.write(text)

    return happen


def _stop(chain: Standing, job: str = "17", **more: object) -> Callable[[], None]:
    return lambda: chain.ended("pretrain", job, "stop", "the loss is nan", **more)


_STOPPED = "-- pretrain: ended: the loss is nan; `why pretrain` says more"


def test_lines_of_several_logs_name_their_phase(standing: Standing) -> None:
    standing.sent("pretrain", "17")
    standing.sent("finetune", "18_3")  # of an array
    standing.log("17", "".join(f"line {n}\n" for n in range(99)))
    standing.log("18_3", "one\nten %\rtwenty %\r\ntorn")
    assert _logs(standing, "pretrain", lines=2) == ["line 97", "line 98"]
    assert len(_logs(standing, "pretrain")) == 50
    assert _logs(standing, lines=2) == [
        "pretrain| line 97",
        "pretrain| line 98",
        "finetune| twenty %",
        "finetune| torn",
    ]
    assert _logs(standing, "finetune", lines=0) == []


def test_other_nodes_are_heard_when_asked_for(standing: Standing) -> None:
    standing.sent("pretrain", "17")
    for node, text in enumerate(["head\n", "other\n"]):
        standing.log("17", text, node)
    standing.log("17_1", "an array's\n")
    assert _logs(standing, "pretrain") == ["head"]
    assert _logs(standing, "pretrain", all_nodes=True) == [
        "pretrain:node0| head",
        "pretrain:node1| other",
    ]


def test_a_phase_that_was_never_sent_has_no_log(standing: Standing) -> None:
    with pytest.raises(UserError, match=r"no phase was ever sent.*submit --chain mine.yaml$"):
        _logs(standing, options="--chain mine.yaml")
    standing.sent("pretrain", "17")
    standing.log("17", "one\n")
    with pytest.raises(UserError, match=r"finetune was never sent.*submit finetune$"):
        _logs(standing, "finetune")
    assert _logs(standing) == ["one"]


def test_a_job_that_waits_has_no_log_but_its_predecessor_may(standing: Standing) -> None:
    standing.slurm(squeue="18|PENDING|Priority||N/A")
    standing.sent("pretrain", "17")
    standing.sent("pretrain", "18", "second")
    assert _logs(standing) == ["-- pretrain: job 18 has no log yet; it is PENDING Priority"]
    standing.log("17", "old\n")
    assert _logs(standing) == ["-- pretrain: job 18 has no log yet; this is of job 17", "old"]


def test_what_is_added_is_said_in_whole_lines_until_the_phase_ends(standing: Standing) -> None:
    standing.slurm(squeue="17|RUNNING|None|gpu07|N/A")
    standing.sent("pretrain", "17")
    standing.started("pretrain", "17")
    file = standing.log("17", "one\ntwo\nthr")
    said = _follow(
        standing,
        _append(file, "ee\nfo"),
        lambda: None,
        _append(file, "ur\n"),
        lambda: file.write_text("anew\n"),  # somebody emptied it
        lambda: (_append(file, "last words")(), _stop(standing)()),
        lines=1,
    )
    assert said == ["two", "three", "four", "anew", "last words", _STOPPED]


def test_a_log_that_is_not_there_yet_is_waited_for(standing: Standing) -> None:
    standing.slurm(squeue="17|PENDING|Priority||N/A")
    standing.sent("pretrain", "17")
    said = _follow(
        standing,
        lambda: None,
        lambda: standing.log("17", "one\n"),
        lambda: standing.log("17", "other\n", node=1),
        _stop(standing),
        all_nodes=True,
    )
    assert said[1:] == ["pretrain:node0| one", "pretrain:node1| other", _STOPPED]


def test_following_goes_on_in_the_new_log_when_the_phase_is_sent_again(standing: Standing) -> None:
    standing.slurm(squeue="17|RUNNING|None|gpu07|N/A\n18|PENDING|Priority||N/A")
    standing.sent("pretrain", "17")
    old = standing.log("17", "old\n")
    said = _follow(
        standing,
        lambda: (_append(old, "torn")(), standing.sent("pretrain", "18", "second")),
        lambda: standing.log("18", "new\n", submission="second"),
        _stop(standing, "18", attempt=2),  # of the first submission: it does not end the second
        lambda: standing.attempt_log("pretrain").append("ended", "18", "second", verdict="done"),
    )
    assert said == [
        "old",
        "torn",
        "-- pretrain: sent again, as job 18",
        "new",
        "-- pretrain: done",
    ]


def test_a_cancelled_phase_is_followed_until_it_has_saved(standing: Standing) -> None:
    standing.slurm(squeue="17|COMPLETING|None|gpu07|N/A")
    standing.sent("pretrain", "17")
    standing.started("pretrain", "17")
    file = standing.log("17", "one\n")
    said = _follow(
        standing,
        lambda: standing.attempt_log("pretrain").append("cancelled", "17", "first"),
        _append(file, "saved\n"),
        lambda: standing.ended("pretrain", "17", "leave", "cancelled; saved at step 40"),
    )
    assert said[:2] == ["one", "saved"]
    assert said[2].startswith("-- pretrain: ended: cancelled; saved at step 40")


def test_a_job_that_slurm_leaves_to_start_again_is_followed_on(standing: Standing) -> None:
    standing.slurm(squeue="17|PENDING|Priority||N/A")
    standing.sent("pretrain", "17")
    standing.started("pretrain", "17")
    standing.ended("pretrain", "17", "leave", "SLURM requeues it itself (PREEMPTED)")
    file = standing.log("17", "one\n")
    said = _follow(standing, _append(file, "again\n"), _stop(standing), pauses=0)
    assert said == ["one", "again", _STOPPED]


def test_one_missing_answer_of_slurm_ends_nothing_but_two_do(standing: Standing) -> None:
    standing.slurm()
    standing.sent("pretrain", "17")
    standing.started("pretrain", "17")
    standing.log("17", "one\n")
    runs = "17|RUNNING|None|gpu07|N/A"
    nothing = [lambda: None] * 9
    happens = [lambda: standing.slurm(squeue=runs), *nothing, standing.slurm]
    said = _follow(standing, *happens, pauses=60)
    assert said == ["one", "-- pretrain: no more lines will come: lost?; `why pretrain` says more"]
    # At first, then missing, there, missing, missing: not a question each half second.
    assert standing.calls("squeue") == 5


def test_a_phase_that_is_complete_already_ends_at_once(standing: Standing) -> None:
    standing.slurm()
    standing.sent("pretrain", "17")
    standing.log("17", "one\n")
    standing.complete("pretrain")
    assert _follow(standing) == ["one", "-- pretrain: complete"]


@pytest.mark.parametrize("lines", [1, 9000, 20_000])
def test_the_last_lines_of_a_long_file(
    lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [f"{n} {'x' * (n % 40)}" for n in range(15_000)]
    file = tmp_path / "log"
    file.write_text("\n".join(whole))  # its last line has no end
    assert last_lines(file, lines) == whole[-lines:]
    assert last_lines(tmp_path / "none", lines) == []
    monkeypatch.setattr(logs, "_MOST", 1000)  # bytes, in which there are 20 lines
    assert last_lines(file, 20) == whole[-20:]
