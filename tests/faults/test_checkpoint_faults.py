"""Damaged checkpoints and disks that refuse: nothing wrong is loaded, nothing good is lost."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lensdist.training import checkpoint
from lensdist.training.async_saver import Saver
from tests.conftest import forked, settings
from tests.runs import assert_same_end

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

META = {"state": {"step": 20, "best": 0.25, "window": [1e-05, 0.5]}, "config": {"seed": 0}}


def state(step: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(step)
    return {
        "model/w": torch.randn(40, 25, generator=draw),
        "model/half": torch.randn(64, generator=draw).bfloat16(),
        "optim/w/step": torch.tensor(float(step)),
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two good checkpoints."""
    for step in (10, 20):
        checkpoint.write(tmp_path, step, state(step), META)
    return tmp_path


def same_as_written(found: checkpoint.Checkpoint) -> bool:
    expected = state(found.step)
    return (
        found.meta == META
        and found.tensors.keys() == expected.keys()
        and all(torch.equal(v, expected[k]) for k, v in found.tensors.items())
    )


def _damaged(data: bytes, how: str, draw: random.Random) -> bytes:
    if how == "flipped":
        bit = draw.randrange(8 * len(data))
        return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]
    kept = draw.randrange(len(data))  # cut short, or what was not yet written is zeros
    return data[:kept] + (bytes(len(data) - kept) if how == "zeros" and any(data[kept:]) else b"")


@pytest.mark.parametrize(("how", "times"), [("flipped", 300), ("short", 100), ("zeros", 100)])
def test_damage_falls_back_to_the_one_before_or_changes_nothing(
    root: Path, how: str, times: int
) -> None:
    newest, draw, refused = root / "step-00000020", random.Random(how), 0
    for i in range(times):
        path = newest / ("checkpoint.json" if i % 3 == 0 else "state.safetensors")
        whole = path.read_bytes()
        path.write_bytes(_damaged(whole, how, draw))
        found, sentences = checkpoint.newest(root)
        assert found is not None
        assert same_as_written(found), (path, i)  # `1e-05` as `1E-05` is harmless
        if found.step == 10:
            refused += 1
            assert str(path) in sentences[0]
        path.write_bytes(whole)
    assert refused >= (0.96 * times if how == "flipped" else times)


@pytest.mark.parametrize("name", ["state.safetensors", "checkpoint.json"])
def test_a_file_that_is_gone_or_no_file_is_damage(root: Path, name: str) -> None:
    path = root / "step-00000020" / name
    path.unlink()
    assert checkpoint.newest(root)[0].step == 10  # type: ignore[union-attr]
    path.mkdir()
    assert checkpoint.newest(root)[0].step == 10  # type: ignore[union-attr]


def test_the_states_of_two_checkpoints_cannot_be_mixed(root: Path) -> None:
    shutil.copy(root / "step-00000010" / "state.safetensors", root / "step-00000020")
    found, sentences = checkpoint.newest(root)
    assert found is not None
    assert found.step == 10
    assert "altered" in sentences[0]


# ---- disks that refuse


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB, where this machine lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def megabytes(n: float, step: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((int(n * 250_000),), float(step))}


@pytest.mark.parametrize("background", [True, False])
def test_a_disk_that_fills_up_costs_a_save_and_nothing_else(
    small_disk: Path, background: bool
) -> None:
    reports: list[tuple[int, str]] = []
    saver = Saver(small_disk / "checkpoints", 2, background, lambda *words: reports.append(words))
    saver.save(1, megabytes(0.3, 1), META, set())
    assert saver.wait()
    (small_disk / "somebody else's").write_bytes(bytes(600_000))
    for step in (2, 3):
        saver.save(step, megabytes(0.3, step), META, {1})
        assert not saver.wait()
    assert [step for step, _ in reports] == [2, 3]
    assert "No space left" in reports[0][1]
    found, damaged = checkpoint.newest(small_disk / "checkpoints")
    assert found is not None
    assert (found.step, damaged) == (1, [])
    assert [p.name for p in (small_disk / "checkpoints").iterdir()] == ["step-00000001"]
    (small_disk / "somebody else's").unlink()
    saver.save(4, megabytes(0.3, 4), META, {1})
    assert saver.wait()
    assert checkpoint.newest(small_disk / "checkpoints")[0].step == 4  # type: ignore[union-attr]


def test_a_disk_that_turns_read_only_costs_a_save_and_nothing_else(small_disk: Path) -> None:
    reports: list[tuple[int, str]] = []
    root = small_disk / "checkpoints"
    saver = Saver(root, 1, True, lambda *words: reports.append(words))
    saver.save(1, megabytes(0.1, 1), META, set())
    saver.wait()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    saver.save(2, megabytes(0.1, 2), META, set())
    assert not saver.wait()
    assert "Read-only" in reports[0][1]
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    saver.save(3, megabytes(0.1, 3), META, set())
    assert saver.wait()
    assert [step for step, _ in checkpoint.steps(root)] == [3]


def test_a_limit_on_file_sizes_is_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python would cut its own files short
    reports: list[tuple[int, str]] = []
    saver = Saver(tmp_path, 1, True, lambda *words: reports.append(words))
    saver.save(1, megabytes(0.01, 1), META, set())
    saver.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        saver.save(2, megabytes(1, 2), META, set())
        assert not saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.strerror(errno.EFBIG) in reports[0][1]
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [1]


def test_what_a_killed_life_left_gives_its_room_back(small_disk: Path) -> None:
    root = small_disk / "checkpoints"
    checkpoint.write(root, 1, megabytes(0.2, 1), META)
    left = root / ".step-00000002.4711.tmp"
    left.mkdir()
    (left / "state.safetensors").write_bytes(bytes(600_000))
    checkpoint.write(root, 2, megabytes(0.3, 2), META)
    assert not left.exists()


# ---- whole runs


def test_a_run_goes_on_through_a_full_disk_and_a_kill(tiny_set: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "train.max_steps": 10, "train.log_every": 2, "checkpoint.every_steps": 2,
        "checkpoint.keep": 1, "train.eval_every_epochs": 99,
    }  # fmt: skip
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = forked("lensdist.train", *settings("mae", tiny_set, whole, **changes))
    assert done.returncode == 0, done.stderr
    words = settings("mae", tiny_set, run, **changes)
    faults = ("full", 4, "full", 6, "step", 7)
    done = forked("tests.faults.killer", *faults, "--", *words)
    assert done.returncode == -9, done.stderr
    assert "step 4: not saved" in done.stderr
    assert "No space left" in done.stderr
    assert [step for step, _ in checkpoint.steps(run / "checkpoints")] == [2]
    done = forked("lensdist.train", *words, "--resume=auto")
    assert done.returncode == 0, done.stderr
    assert_same_end(run, whole)
