"""Looking at a chain that runs on the test cluster."""

from __future__ import annotations

import time
from pathlib import Path

from lensdist.tracking.metrics_log import read
from slurm.attempts import Attempt, AttemptLog, attempts


def log_of(runs: Path, job: str, task: int = 0) -> str:
    """A job's log of one node, over all its attempts."""
    return next(runs.glob(f".submit/*/{job}_{task}_log.out")).read_text()


def losses(run: Path) -> dict[int, float]:
    """The logged losses of a run, by step."""
    return {
        row["step"]: row["loss"] for row in read(run / "metrics.jsonl") if row["kind"] == "train"
    }


def wait_step(run: Path, step: int, seconds: float = 300) -> int:
    """Wait until a run has logged a step or a later one; which."""
    end = time.monotonic() + seconds
    while (there := max(losses(run), default=0)) < step:
        assert time.monotonic() < end, f"{run} came to step {there} only, not to {step}"
        time.sleep(0.1)
    return there


def attempts_of(runs: Path, phase: str) -> list[Attempt]:
    """What the launcher wrote down of a phase's attempts."""
    return attempts(AttemptLog(runs / ".submit" / "ledger" / f"{phase}.jsonl").events())
