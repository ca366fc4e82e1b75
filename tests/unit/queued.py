"""What tests of sending share: a fake SLURM on PATH, a tiny clone, and runs that are finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from lensdist.utils.files import sha256, to_json, write_atomic
from slurm.plan.plan import Step
from slurm.submission import send
from tests.fakes.slurm import FakeSlurm


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A SLURM on PATH, and a clone of a few bytes to send the code of."""
    (tmp_path / "slurm").mkdir()
    slurm = FakeSlurm(tmp_path / "slurm")
    for key, value in slurm.environment.items():
        monkeypatch.setenv(key, value)
    write_atomic(tmp_path / "clone" / "lensdist" / "a.py", "A = 1\n")
    monkeypatch.setattr(send, "ROOT", tmp_path / "clone")
    return slurm


def waits(fake: FakeSlurm) -> dict[str, str]:
    """What each job that may still start waits for, by its id."""
    return {j: job["dependency"] for j, job in fake.jobs.items() if job["state"] == "PENDING"}


def sendings(state: Path) -> list[Path]:
    """The submissions' folders."""
    return sorted(path for path in state.glob("2*-*") if path.is_dir())


def finish(step: Step) -> Path:
    """Put there what a finished run of a step leaves; returns its folder."""
    assert step.config is not None
    mark_complete(step.target.run, step.config.model_dump(mode="json"))
    return step.target.run


def mark_complete(run: Path, config: object = None) -> None:
    """Put there what a finished run leaves, as far as anybody looks at it."""
    write_atomic(run / "export" / "model.safetensors", f"weights of {run.name}")
    digest = sha256(run / "export" / "model.safetensors")
    record = {"config": config or {}, "data": None, "encoder": None, "code": {}}
    record["files"] = {"export/model.safetensors": digest}
    write_atomic(run / "COMPLETE.json", to_json(record))
