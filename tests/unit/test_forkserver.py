"""Forked runs of the tests are processes like those that a person starts."""

from __future__ import annotations

import signal
import subprocess

import pytest

from tests.conftest import environment, forked

pytestmark = pytest.mark.unit

ONCE = ("timeit", "-n1", "-r1")  # `python -m timeit CODE` runs it


def test_a_process_of_its_own_with_none_of_the_toolkit_loaded() -> None:
    code = (
        "import os, sys\n"
        "print([name in sys.modules for name in ('torch', 'lensdist', 'lensdist.train')])\n"
        "print(os.environ['GIVEN'], 'PATH' in os.environ, sys.stdin.read(), flush=True)\n"
        "print('said', file=sys.stderr)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = forked(*ONCE, code, env={"GIVEN": "here"})
    assert done.stdout == "[True, False, False]\nhere False \n"
    assert done.stderr == "said\n"
    assert done.returncode == -signal.SIGKILL


def test_several_beside_each_other() -> None:
    code = "import os\nprint(os.environ['RANK'], os.environ['WORLD_SIZE'])"
    assert forked(*ONCE, code, processes=2).stdout.split("\n")[0] == "0 2"
    failing = "import os\nif os.environ['RANK'] == '1': os._exit(3)"
    assert forked(*ONCE, failing, processes=2).returncode == 3


def test_one_that_hangs_is_killed_and_the_next_one_runs() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        forked(*ONCE, "import time; time.sleep(1000)", timeout=0.2)
    assert forked(*ONCE, "pass", env=environment()).returncode == 0
