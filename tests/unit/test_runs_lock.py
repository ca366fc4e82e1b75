"""A run's folder has one writer at a time, on file systems without flock too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lensdist.runs import lock
from lensdist.runs.lock import held
from lensdist.utils import owners
from lensdist.utils.errors import Busy, UserError
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

# A holder; of a machine that is not this one where a name is given. No file system knows flock.
_HOLD = """
import errno, fcntl, sys, time
from pathlib import Path
def none(*_): raise OSError(errno.ENOSYS, "Function not implemented")
fcntl.flock = none
from lensdist.utils import owners
from lensdist.runs import lock
from lensdist.utils.errors import Busy
lock.BEAT = 0.2
if len(sys.argv) > 3:
    owners._machine = lambda: sys.argv[3]
try:
    with lock.held(Path(sys.argv[1])):
        print("holds", flush=True)
        time.sleep(float(sys.argv[2]))
except Busy as error:
    print("busy", error, flush=True)
"""


def holder(folder: Path, seconds: float, *machine: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", _HOLD, str(folder), str(seconds), *machine]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@contextmanager
def holding(folder: Path, *machine: str) -> Iterator[subprocess.Popen[str]]:
    process = holder(folder, 60, *machine)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "holds\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is elsewhere counts as dead after three seconds; it beats every 0.2."""
    monkeypatch.setattr(lock, "BEAT", 1.0)
    monkeypatch.setattr(lock, "PATIENCE", 3.0)


def test_without_flock_a_second_run_is_refused_and_told_whose_the_folder_is(
    tmp_path: Path,
) -> None:
    with holding(tmp_path) as process:
        with pytest.raises(Busy, match=rf"process {process.pid} on .*delete {tmp_path}/\.lock"):
            held(tmp_path).__enter__()
        assert len(list(tmp_path.iterdir())) == 1  # the refused one left nothing
        process.kill()
        process.wait()
        start = time.monotonic()
        with held(tmp_path):  # a killed run goes on at once
            assert time.monotonic() - start < 5


def test_of_many_that_start_at_once_one_wins(tmp_path: Path) -> None:
    with holding(tmp_path / "run") as killed:
        killed.kill()
        killed.wait()  # all of them find a dead claim, too
        words = [holder(tmp_path / "run", 20) for _ in range(5)]
        said = []
        try:
            for process in words:
                assert process.stdout is not None
                said.append(process.stdout.readline().split()[0])
        finally:
            for process in words:
                process.kill()
                process.communicate()
    assert sorted(said) == ["busy"] * 4 + ["holds"]


@pytest.mark.usefixtures("quick")
def test_a_process_elsewhere_holds_as_long_as_it_beats(tmp_path: Path) -> None:
    with holding(tmp_path, "0badcafe") as process:
        with pytest.raises(Busy):
            held(tmp_path).__enter__()
        process.send_signal(signal.SIGKILL)
        process.wait()
        with held(tmp_path):
            assert len(list(tmp_path.glob(".lock.*"))) == 1


@pytest.mark.usefixtures("quick")
def test_a_clock_that_is_wrong_makes_no_live_process_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holding(tmp_path, "0badcafe"):
        ahead = time.time
        monkeypatch.setattr(time, "time", lambda: ahead() + 86_400)
        with pytest.raises(Busy):
            held(tmp_path).__enter__()


def test_who_was_taken_for_dead_ends(tmp_path: Path) -> None:
    with holding(tmp_path, "0badcafe") as process:
        for path in tmp_path.iterdir():
            path.unlink()
        with held(tmp_path):
            assert process.wait(30) == 1


def test_a_number_that_another_process_has_by_now_is_not_the_owner() -> None:
    mine = owners.owner_of(f".x.{owners.tag()}")
    assert mine is not None
    assert not mine.dead
    assert mine._replace(started=mine.started + 1).dead


def test_a_folder_that_was_only_held_is_gone_again(tmp_path: Path) -> None:
    with held(tmp_path / "a" / "b"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        if folder.stat().st_uid == os.getuid() and folder != Path("/tmp"):
            folder.chmod(0o755)
    child = os.fork()
    if not child:
        os.setuid(65534)
        try:
            held(tmp_path / "run").__enter__()
        except UserError as error:
            os._exit(0 if "ermission" in str(error) else 3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
