"""When jobs could start, by what sbatch says."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from slurm.scheduler import expected_start

pytestmark = pytest.mark.unit

SCRIPT = """#!/bin/bash

# Parameters
#SBATCH --dependency=afterok:JOB_OF_pretrain
#SBATCH --job-name=tiny-finetune
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --nodes=2

srun x --dependency
"""


def _sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """One that keeps what it was given, and answers."""
    fake = tmp_path / "sbatch"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/words\ncat > {tmp_path}/script\n{body}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_when_a_job_could_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "Job 24 to start at 2026-11-24T12:00:00 using 4 processors on nodes gpu[1-2]"
    _sbatch(tmp_path, monkeypatch, f"echo 'sbatch: {answer} in partition main' >&2")
    alone = SCRIPT.replace("--dependency=afterok:JOB_OF_pretrain", "--time=20").replace(
        "#SBATCH --kill-on-invalid-dep=yes\n", ""
    )
    said = "at 2026-11-24 12:00:00 on 4 cores of gpu[1-2], partition main"
    waits = f"{said}, not counting the phases it waits for"
    assert expected_start(alone) == said
    assert (tmp_path / "script").read_text() == alone
    assert expected_start(SCRIPT) == waits
    given = (tmp_path / "script").read_text()
    assert "JOB_OF" not in given
    assert "invalid-dep" not in given
    assert "#SBATCH --nodes=2\n\nsrun x --dependency\n" in given  # the commands stay as they are
    assert set((tmp_path / "words").read_text().split("\n")) == {"--test-only", ""}


def test_jobs_that_would_have_to_go_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Older ones tell no partition.
    answer = "Job 9 to start at 2026-11-24T12:00:00 using 1 processors on nodes node1"
    _sbatch(tmp_path, monkeypatch, f"echo 'sbatch: {answer}\nsbatch:   Preempts: 7,8' >&2")
    said = "at 2026-11-24 12:00:00 on 1 core of node1, in place of job 7,8"
    assert expected_start("#!/bin/sh\n") == said


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (
            "sbatch: error: invalid partition specified: nope\n"
            "allocation failure: Invalid partition name specified",
            "invalid partition specified: nope; allocation failure: Invalid partition name "
            "specified",
        ),
        ("", "exit code 1"),
    ],
)
def test_a_refusal_is_told_in_slurm_s_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, said: str
) -> None:
    _sbatch(tmp_path, monkeypatch, f"printf '%s' {shlex.quote(told)} >&2; exit 1")
    assert expected_start(SCRIPT) == f"refused: {said}"
