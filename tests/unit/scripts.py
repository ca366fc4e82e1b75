"""What tests of `begin` and `settle` share: a batch script, played step by step."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import pytest

from lensdist.utils.files import to_json, write_atomic
from slurm.attempts import Event
from slurm.job import Job, Target
from slurm.job_side import epilogue, prologue
from slurm.job_side.command import ATTEMPT
from tests.fakes.slurm import FakeSlurm
from tests.unit.jobs import make_job


class Script:
    """The batch script of one job, which runs on two nodes: its variables, and what it calls."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, fake: FakeSlurm) -> None:
        self.fake, self._patch, self._folder = fake, patch, folder
        self.run = folder / "finetune"
        self.need = Target(phase="pretrain", run=folder / "pretrain")
        self.id = fake.add(state="RUNNING", nodes="gpu[7-8]", left="1:00:00")
        self.allot("gpu[7-8]")

    def allot(self, nodes: str, **more: str) -> None:
        """SLURM's variables."""
        for name, value in {"JOB_ID": self.id, "JOB_NODELIST": nodes, **more}.items():
            self._patch.setenv(f"SLURM_{name}", value)

    def write(self, submission: str = "now", **changes: Any) -> Job:
        """The job's file, of a submission."""
        cluster = {"executor": "slurm", "nodes": 2} | changes.pop("cluster", {})
        given = {"argv": ("-m", "lensdist.train"), "counts": (1, 2), "cluster": cluster} | changes
        target = Target(phase="finetune", run=self.run)
        self.job = make_job(target, self._folder / ".submit", submission, **given)
        self.file = self.job.file
        return self.job

    def begin(self) -> dict[str, str]:
        """What `begin` has the script export; the script does so."""
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert prologue.main(str(self.file)) == 0
        lines = out.getvalue().splitlines()
        assert lines[0] == ":"  # Python runs on this node
        found = dict(line.removeprefix("export ").split("=") for line in lines[1:])
        for name, value in found.items():
            self._patch.setenv(name, value)
        return found

    def settle(self, code: int = 1) -> int:
        return epilogue.main(str(self.file), code)

    def step(self, number: int) -> None:
        """A checkpoint."""
        (self.run / "checkpoints" / f"step-{number:08d}").mkdir(parents=True)

    def report(self, host: str, problem: str, *, shared: bool = False) -> None:
        """What a node, gpu7 or gpu8, says of itself in this attempt."""
        number = int(host[-1]) - 7
        said = {"host": host, "node": number, "problem": problem}
        write_atomic(self.outcomes / f"node-{number:05d}.json", to_json(said | {"shared": shared}))

    @property
    def outcomes(self) -> Path:
        return self.job.outcome_folder(int(os.environ[ATTEMPT]))

    @property
    def last(self) -> Event:
        return self.job.attempt_log.events()[-1]

    @property
    def told(self) -> list[list[str]]:
        """What SLURM was told to do."""
        return [call for call in self.fake.calls if call[1] in ("requeue", "update")]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeSlurm) -> Script:
    found = Script(tmp_path, monkeypatch, fake)
    found.write()
    return found
