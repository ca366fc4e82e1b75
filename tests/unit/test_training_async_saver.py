"""Saving in the background: a snapshot of its moment, and no failure that passes for success."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from lensdist.training import checkpoint
from lensdist.training.async_saver import Saver

pytestmark = pytest.mark.unit


class Reports(list[tuple[int, str]]):
    def __call__(self, step: int, sentence: str) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.append((step, sentence))


@pytest.fixture
def reports() -> Reports:
    return Reports()


def full_disk(*_: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_is_saved_is_the_state_of_that_moment(
    tmp_path: Path, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, write = threading.Event(), checkpoint.write

    def slowly(*args: Any) -> Path:
        assert release.wait(10)
        return write(*args)

    monkeypatch.setattr(checkpoint, "write", slowly)
    weights = torch.ones(1000)
    saver = Saver(tmp_path, 2, True, reports)
    saver.save(1, {"w": weights}, {}, set())
    weights.fill_(7)  # training goes on, in place, while the writer has not even begun
    saver.poll()  # does not wait
    assert not list(tmp_path.glob("step-*"))
    release.set()
    assert saver.wait()
    assert torch.equal(checkpoint.read(tmp_path / "step-00000001").tensors["w"], torch.ones(1000))


@pytest.mark.parametrize("background", [True, False])
def test_room_made_ready_changes_nothing_of_what_is_saved(
    background: bool, tmp_path: Path, reports: Reports
) -> None:
    weights = torch.zeros(1000)
    saver = Saver(tmp_path, 2, background, reports)
    saver.prepare({"w": weights, "gone": torch.zeros(5)})
    saver.save(1, {"w": weights.fill_(3)}, {}, set())
    assert saver.wait()
    found = checkpoint.read(tmp_path / "step-00000001").tensors
    assert found.keys() == {"w"}
    assert torch.equal(found["w"], torch.full((1000,), 3.0))
    assert not reports


def test_state_may_change_its_tensors_between_saves(tmp_path: Path, reports: Reports) -> None:
    saver = Saver(tmp_path, 9, True, reports)
    states = [
        {"a": torch.ones(3)},
        {"a": torch.ones(3), "b": torch.zeros(2, 2)},
        {"a": torch.ones(4, dtype=torch.float64), "c": torch.tensor(True)},
    ]
    for step, state in enumerate(states):
        saver.save(step, state, {"n": step}, set())
    assert saver.wait()
    for step, state in enumerate(states):
        found = checkpoint.read(tmp_path / f"step-{step:08d}")
        assert found.meta == {"n": step}
        assert found.tensors.keys() == state.keys()
        assert all(torch.equal(found.tensors[k], v) for k, v in state.items())


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_is_reported_once_and_tried_again(
    background: bool, tmp_path: Path, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(tmp_path, 1, background, reports)
    saver.save(1, {"w": torch.ones(1)}, {}, set())
    with monkeypatch.context() as patch:
        saver.wait()
        patch.setattr(checkpoint, "write", full_disk)
        saver.save(2, {"w": torch.ones(1)}, {}, set())
        assert not saver.wait()
        assert not saver.wait()  # asked again, it is still not saved
    assert [step for step, _ in reports] == [2]
    assert "No space left" in reports[0][1]
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [1]
    saver.save(3, {"w": torch.ones(1)}, {}, set())
    assert saver.wait()
    assert len(reports) == 1
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [3]


def test_a_failure_is_told_without_waiting_for_the_next_save(
    tmp_path: Path, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "write", full_disk)
    saver = Saver(tmp_path, 1, True, reports)
    saver.save(8, {}, {}, set())
    for _ in range(200):
        saver.poll()
        if reports:
            break
        threading.Event().wait(0.01)
    assert [step for step, _ in reports] == [8]


@pytest.mark.parametrize(
    ("tensors", "meta"),
    [({}, {"loss": float("nan")}), ({"z": torch.zeros(2, dtype=torch.complex64)}, {})],
)
@pytest.mark.parametrize("background", [True, False])
def test_a_state_that_can_never_be_saved_is_not_taken_for_saved(
    background: bool, tensors: Any, meta: Any, tmp_path: Path, reports: Reports
) -> None:
    saver = Saver(tmp_path, 1, background, reports)

    def save() -> None:
        saver.save(1, tensors, meta, set())
        saver.wait()

    with pytest.raises((ValueError, KeyError)):
        save()
    assert not list(tmp_path.iterdir())


def test_the_best_survives_pruning(tmp_path: Path, reports: Reports) -> None:
    saver = Saver(tmp_path, 1, True, reports)
    for step in range(1, 6):
        saver.save(step, {}, {}, {2} if step >= 2 else set())
    saver.wait()
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [2, 5]
