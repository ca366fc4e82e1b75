"""A fake SLURM: its commands in a folder put first on PATH. It runs nothing.

Jobs change by the commands themselves (sbatch, scancel, scontrol requeue, …), and as a test sets
them, so that what takes minutes on a cluster takes none.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from tests.fakes.slurm_commands import COMMANDS
from tests.fakes.slurm_state import new_job, opened

ROOT = Path(__file__).resolve().parents[2]
# Without site-packages: a quarter of the time.
_RUN = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import tests.fakes.slurm_commands as c"


class FakeSlurm:
    """One cluster.

    Args:
        folder: for its commands and its state, of which it has none yet.
        accounting: whether sacct has anything to tell.
        strict: squeue refuses all if one of the jobs asked for is unknown, as older SLURMs do.
    """

    def __init__(self, folder: Path, *, accounting: bool = True, strict: bool = False) -> None:
        self._state = folder / "slurm.json"
        state = {"next": 101, "jobs": {}, "calls": [], "unsupported": [], "down": False}
        state |= {"refusal": "", "accepts": 0, "accounting": accounting, "strict": strict}
        state |= {"loses": 0, "stays_down": False, "largest_array": 1001}
        self._state.write_text(json.dumps(state))
        programs = folder / "bin"
        programs.mkdir()
        for name in COMMANDS:
            words = [sys.executable, "-S", "-E", "-c", f"{_RUN}; c.main()", name, str(self._state)]
            (programs / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            (programs / name).chmod(0o755)
        self.environment = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}

    @property
    def jobs(self) -> dict[str, dict[str, Any]]:
        """All jobs so far, by id; of an array each task: 101_0.

        Their fields are those of `slurm_state.new_job`; `set` changes them.
        """
        found: dict[str, dict[str, Any]] = self._read("jobs")
        return found

    @property
    def calls(self) -> list[list[str]]:
        """Every command so far, its name first."""
        found: list[list[str]] = self._read("calls")
        return found

    def add(self, **changes: Any) -> str:
        """Queue a job without a script; its id."""
        with opened(self._state) as state:
            job = new_job(state["next"], None, {}, "#!/bin/sh\n")
            state["next"] += 1
            state["jobs"][job["id"]] = job
        self.set(job["id"], **changes)
        return str(job["id"])

    def set(self, job: str, **changes: Any) -> None:
        """Change what is known of a job: `state="RUNNING", nodes="node[1-2]"`.

        `queued=False`: only the accounting still knows it. `accounted={"state": …}`: what the
        accounting, which lags behind, says otherwise; None: it has not heard of it yet.

        Raises:
            KeyError: there is no such job, or no such field.
        """
        with opened(self._state) as state:
            known = state["jobs"][job]
            if unknown := set(changes) - set(known):
                raise KeyError(f"a job has no {', '.join(sorted(unknown))}")
            known |= changes

    def refuse(self, message: str, after: int = 0) -> None:
        """Let sbatch refuse all jobs but so many first ones; with "", none any more."""
        self._write(refusal=message, accepts=after)

    def lose_answer(self, *, stays_down: bool = False) -> None:
        """Let the next sbatch queue its job and time out; then nobody may reach the controller."""
        self._write(loses=1, stays_down=stays_down)

    def down(self, is_down: bool = True) -> None:
        """Nobody reaches the controller, until it is up again."""
        self._write(down=is_down)

    def limit_arrays(self, size: int) -> None:
        """Set MaxArraySize."""
        self._write(largest_array=size)

    def _write(self, **changes: Any) -> None:
        with opened(self._state) as state:
            state.update(changes)

    def _read(self, what: str) -> Any:
        with opened(self._state) as state:
            assert not state["unsupported"], state["unsupported"]
            return state[what]
