"""README's `srun` on a real SLURM: one run of all tasks; and lists of nodes as SLURM reads them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lensdist.utils import hostlist
from tests.conftest import ROOT, environment, settings
from tests.distributed.test_launch import _documented
from tests.runs import record
from tests.slurm.minislurm import MiniSlurm

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def _typed(line: str, cluster: MiniSlurm, **more: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in environment().items() if k != "ACCELERATE_USE_CPU"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        line,
        shell=True,
        cwd=ROOT,
        env={**kept, "PATH": path, **cluster.environment, **more},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_tasks_of_srun_are_one_run(cluster: MiniSlurm, tiny_set: Path, tmp_path: Path) -> None:
    words = settings("mae", tiny_set, tmp_path / "run", **{"train.max_steps": 3})
    line = _documented("4 tasks of SLURM").replace("--config …", " ".join(words))
    done = _typed(line.replace("srun ", "srun -N 2 "), cluster)
    assert done.returncode == 0, done.stderr
    assert record(tmp_path / "run")["steps"] == 3
    assert done.stderr.count("on 4 process(es)") == 1

    apart = f"run.dir={tmp_path}/$SLURM_PROCID"
    line = f"srun -n 2 bash -c 'exec python -m lensdist.train {' '.join(words)} {apart}'"
    mixed = _typed(line, cluster)
    assert mixed.returncode == 2
    assert "different settings" in mixed.stderr
    assert not (tmp_path / "0").exists()


def test_one_process_of_an_allocation_is_alone(
    cluster: MiniSlurm, tiny_set: Path, tmp_path: Path
) -> None:
    words = settings("mae", tiny_set, tmp_path / "run", **{"train.max_steps": 1})
    done = _typed(f"salloc -n 2 python -m lensdist.train {' '.join(words)}", cluster)
    assert done.returncode == 0, done.stderr
    assert "on 1 process(es)" in done.stderr


@pytest.mark.parametrize(
    "nodes", ["gpu[07-08,11],x1,127.0.0.[9-10]", "a[1-2]-ib[0-1]", "n[98-101]"]
)
def test_lists_of_nodes_are_read_as_slurm_does(nodes: str, cluster: MiniSlurm) -> None:
    assert hostlist.expand(nodes) == cluster.run("scontrol", "show", "hostnames", nodes).split()
