"""srun puts the task into a container that has no SLURM and an interpreter of its own (pyxis).

The container is emulated: a script in front of SLURM's srun takes `--container-image` away and
empties PATH, as an image does that has none of SLURM's commands.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lensdist.phases import completed
from tests.chains import jobs_of, submit, write_chain, write_cluster
from tests.slurm.minislurm import MiniSlurm
from tests.slurm.watch import log_of

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

_SRUN = """#!/bin/bash
options=()
while [[ "$1" == --* || "$1" == "" ]]; do
  [[ "$1" == --container-image=* ]] || options+=("$1")
  [[ "$1" == --output || "$1" == --error ]] && { options+=("$2"); shift; }
  shift
done
exec /usr/bin/srun "${options[@]}" /usr/bin/env PATH=BOX "$@"
"""
_PYTHON = """#!/bin/sh
: > BOX/used
if command -v scontrol; then exit 9; fi
exec PYTHON "$@"
"""


def test_nothing_of_slurm_is_called_inside(
    cluster: MiniSlurm, tiny_set: Path, tmp_path: Path
) -> None:
    outside, box = tmp_path / "outside", tmp_path / "box"
    for folder in (outside, box):
        folder.mkdir()
    (outside / "srun").write_text(_SRUN.replace("BOX", str(box)))
    (box / "python3").write_text(_PYTHON.replace("BOX", str(box)).replace("PYTHON", sys.executable))
    (outside / "srun").chmod(0o755)
    (box / "python3").chmod(0o755)
    chain = write_chain(tmp_path, tiny_set)
    where = write_cluster(
        tmp_path,
        executor="slurm",
        nodes=2,
        processes_per_node=1,
        cpus_per_task=1,
        setup=[f"export PATH={outside}:$PATH"],
        srun={"container-image": "x.sqsh"},
        python=str(box / "python3"),
        requeue={"limit": 0},
    )
    submit("submit", chain, where, "pretrain", env=cluster.environment)
    runs = tmp_path / "runs"
    (job,) = jobs_of(runs).values()
    assert cluster.finished(job, 400) == "COMPLETED", log_of(runs, job)
    assert completed(runs / "pretrain") is not None
    assert (box / "used").exists()
    assert "on 2 process(es)" in log_of(runs, job)
