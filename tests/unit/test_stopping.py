"""Leaving before the job's time limit."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from lensdist.training import checkpoint
from lensdist.training.async_saver import Saver
from lensdist.training.stopping import RESERVE, Deadline, Stopper, job_ends
from lensdist.utils.errors import UserError
from lensdist.utils.launched import DEADLINE
from tests.unit.worlds import FakeWorld, on_all

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("handlers")]


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def steps_until_near(deadline: Deadline, clock: Clock, seconds: list[float]) -> int:
    """How many of these steps are done when it is time to leave."""
    for done, step in enumerate(seconds, start=1):
        clock.now += step
        if deadline.near():
            return done
    return 0


def test_nothing_is_near_in_good_time(clock: Clock) -> None:
    deadline = Deadline(clock.now + 1000, lambda: 0.0, clock)
    assert steps_until_near(deadline, clock, [1.0] * 100) == 0


@pytest.mark.parametrize(("step", "save"), [(1.0, 0.0), (1.0, 30.0), (7.0, 5.0), (100.0, 0.0)])
def test_a_run_leaves_as_late_as_it_can_and_no_later(
    step: float, save: float, clock: Clock
) -> None:
    end = clock.now + 500
    deadline = Deadline(end, lambda: save, clock)
    steps_until_near(deadline, clock, [step] * 1000)
    assert clock.now + save + RESERVE <= end  # in time
    assert clock.now + 2 * step + save + RESERVE > end  # one step more, and it might not be


def test_the_slowest_gap_counts_though_steps_are_fast(clock: Clock) -> None:
    deadline = Deadline(clock.now + 200, lambda: 0.0, clock)
    # The third step ends in an evaluation of a minute: such a one must still fit in.
    done = steps_until_near(deadline, clock, [1, 1, 61, *[1] * 200])
    assert clock.now == 1000 + 200 - 61 - RESERVE
    assert done > 3


def test_what_comes_once_a_stage_is_not_taken_for_a_step(clock: Clock) -> None:
    deadline = Deadline(clock.now + 400, lambda: 0.0, clock)
    assert steps_until_near(deadline, clock, [1] * 5) == 0
    deadline.pause()
    assert steps_until_near(deadline, clock, [150]) == 0  # features kept for the stage
    steps_until_near(deadline, clock, [1] * 400)
    assert clock.now == 1000 + 400 - 1 - RESERVE


def test_a_save_that_has_become_slow_counts_from_then_on(clock: Clock) -> None:
    save = [0.0]
    deadline = Deadline(clock.now + 100, lambda: save[0], clock)
    assert steps_until_near(deadline, clock, [1] * 20) == 0
    save[0] = 70.0
    assert steps_until_near(deadline, clock, [1]) == 1


# ---- the wish


def stopper_of(world: Any, folder: Path, clock: Clock, seconds: float) -> Stopper:
    stopper = Stopper(folder, world, 0)
    stopper.deadline = Deadline(clock.now + seconds, lambda: 0.0, clock)
    return stopper


def test_the_wish_has_a_reason_and_stays(tmp_path: Path, clock: Clock) -> None:
    stopper = stopper_of(FakeWorld(), tmp_path, clock, 60)
    assert stopper.asked() is None
    clock.now += 55
    assert stopper.asked() == "the job's time limit"
    clock.now -= 55
    assert stopper.asked() == "the job's time limit"


def test_a_stop_file_is_told_before_a_time_limit(tmp_path: Path, clock: Clock) -> None:
    stopper = stopper_of(FakeWorld(), tmp_path, clock, 0)
    (tmp_path / "STOP").touch()
    assert stopper.asked() == "STOP file"


def test_a_stages_start_is_not_measured(tmp_path: Path, clock: Clock) -> None:
    stopper = stopper_of(FakeWorld(), tmp_path, clock, 100)
    assert stopper.asked() is None
    stopper.begin_stage()
    clock.now += 60
    assert stopper.asked() is None  # measured, 60 s more would not fit in
    clock.now += 20
    assert stopper.asked() is not None


def test_only_the_main_process_looks_and_all_leave(tmp_path: Path, clock: Clock) -> None:
    def work(world: Any) -> tuple[bool, str | None]:
        stopper = stoppers[world.rank]
        stopper._world = world
        return stopper.agreed(), stopper.asked()

    # Clocks of nodes differ: two that decided for themselves could leave at different steps.
    stoppers = [stopper_of(FakeWorld(r, 3), tmp_path, clock, (60, 0, 0)[r]) for r in range(3)]
    assert on_all(3, work) == [(False, None)] * 3
    clock.now += 55
    assert on_all(3, work) == [(True, "the job's time limit"), (True, None), (True, None)]


# ---- the limit in the environment


def test_the_limit_is_a_time_since_1970(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0)
    monkeypatch.setattr("time.monotonic", lambda: 50.0)
    assert job_ends({DEADLINE: "1700000100"}) == 150.0
    assert job_ends({DEADLINE: "1699999999.5"}) == 49.5
    assert job_ends({}) is job_ends({DEADLINE: ""}) is None


@pytest.mark.parametrize("text", ["soon", "nan", "inf", "2026-01-01T00:00:00"])
def test_a_limit_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="seconds since 1970"):
        job_ends({DEADLINE: text})


# ---- how long a save takes


@pytest.mark.parametrize("background", [True, False])
def test_a_saver_knows_its_slowest_save(
    background: bool, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([3.0, 40.0, 2.0])

    def write(*_: Any) -> None:
        clock.now += next(seconds)

    monkeypatch.setattr(checkpoint, "write", write)
    monkeypatch.setattr("time.perf_counter", clock)
    found = []
    it = Saver(tmp_path, 1, background, lambda *_: None)
    assert it.needs_s() == 0
    for step in (1, 2, 3):
        it.save(step, {}, {}, set())
        it.wait()
        found.append(it.needs_s())
    assert found == [3.0, 40.0, 40.0]


def test_a_save_waits_for_the_one_under_way(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    release.set()

    def write(*_: Any) -> None:
        clock.now += 5
        assert release.wait(10)

    monkeypatch.setattr(checkpoint, "write", write)
    monkeypatch.setattr("time.perf_counter", clock)
    it = Saver(tmp_path, 1, True, lambda *_: None)
    it.save(1, {}, {}, set())
    it.wait()
    release.clear()
    it.save(2, {}, {}, set())
    assert it.needs_s() == 10
    release.set()
    it.wait()
    assert it.needs_s() == 5
