"""Which signals ask a process to stop, and who its launcher is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lensdist.training.stopping import Stopper
from lensdist.utils import signals
from tests.conftest import ROOT, environment
from tests.unit.worlds import FakeWorld

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("handlers")]

# Starts what prints its launcher, and itself.
_STARTS = """
import os, subprocess, sys
code = "from lensdist.utils import signals; print(signals.launcher())"
subprocess.run([sys.executable, "-c", code], check=True)
print(os.getpid())
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR2", "SIGINT", "SIGHUP"])
def test_every_request_is_heard_with_its_name(number: str, tmp_path: Path) -> None:
    signals.begin(trains=True)
    stopper = Stopper(tmp_path, FakeWorld())  # type: ignore[arg-type]
    assert stopper.asked() is None
    signal.raise_signal(signal.Signals[number])
    assert stopper.asked() == number
    ends = signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert ends is (number == "SIGINT")  # a second Ctrl-C ends the process at once


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_was_ignored_at_the_start_stays_ignored(number: int, tmp_path: Path) -> None:
    signal.signal(number, signal.SIG_IGN)  # as nohup, and a shell for what runs in its background
    signals.begin(trains=True)
    stopper = Stopper(tmp_path, FakeWorld())  # type: ignore[arg-type]
    signal.raise_signal(number)
    assert stopper.asked() is None
    signal.raise_signal(signal.SIGTERM)
    assert stopper.asked() == "SIGTERM"


def test_a_request_that_a_library_has_swallowed_is_heard_at_the_first_step(tmp_path: Path) -> None:
    signals.begin(trains=True)
    with pytest.raises(SystemExit):  # which some library's import has caught
        signal.raise_signal(signal.SIGTERM)
    assert Stopper(tmp_path, FakeWorld()).asked() == "SIGTERM"  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("name", "known"), [("torchrun", True), ("accelerate", True), ("x", False)]
)
def test_a_launcher_is_known_by_its_name(name: str, known: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_text(_STARTS)
    done = subprocess.run(
        [sys.executable, str(tmp_path / name)],
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=True,
    )
    found, own = done.stdout.split()
    assert found == (own if known else "None")


def test_other_commands_take_ctrl_c_before_their_imports(tmp_path: Path) -> None:
    slow = f"import pathlib, time\npathlib.Path({str(tmp_path / 'there')!r}).touch()\n"
    (tmp_path / "pydantic.py").write_text(f"{slow}time.sleep(300)")
    words = [sys.executable, "-m", "lensdist", "pack", "a", "b"]
    env = environment(PYTHONPATH=str(tmp_path))
    with subprocess.Popen(words, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 120
        while not (tmp_path / "there").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        assert process.communicate(timeout=120)[1] == "interrupted\n"
    assert process.returncode == 1
