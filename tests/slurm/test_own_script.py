"""The batch scripts of docs/slurm.md, on a real SLURM: told to save, they go on in another job."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lensdist.phases import completed
from lensdist.tracking.metrics_log import read
from tests.conftest import ROOT, environment, settings
from tests.slurm.minislurm import MiniSlurm
from tests.slurm.watch import wait_step

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]

STEPS = {"train.max_steps": 200, "train.epochs": 1000, "train.log_every": 2}


def _scripts() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "slurm.md").read_text(), re.DOTALL)
    return [block for block in blocks if "#SBATCH" in block]


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_script_of_the_docs(
    nodes: int, cluster: MiniSlurm, tiny_set: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = settings("mae", tiny_set, run, **STEPS, **{"train.eval_every_epochs": 1000})
    # What a reader changes: the folder, the settings, and how many processes of what kind.
    text = _scripts()[nodes - 1].replace("#SBATCH --gpus-per-node=8\n", "")
    text = re.sub(r"^run=.*$", f"run={run}", text, flags=re.M)
    text = re.sub(r"^settings=.*$", f'settings="{" ".join(words)}"', text, flags=re.M)
    text = text.replace("8gpu.yaml", "cpu.yaml").replace("--nproc-per-node 8", "--nproc-per-node 1")
    script = tmp_path / "script.sh"
    script.write_text(text)
    log = tmp_path / "log"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    sent = subprocess.run(
        ["sbatch", "--parsable", "-c", "1", "-o", str(log), "--time=10", str(script)],
        cwd=ROOT,
        env=environment(PATH=path, **cluster.environment),
        capture_output=True,
        text=True,
        check=True,
    )
    job = sent.stdout.strip()
    wait_step(run, 4, 240)
    cluster.run("scancel", "--batch", "--signal=USR2", job)  # what `--signal=B:USR2@300` does
    assert cluster.finished(job, 240) == "COMPLETED", log.read_text()
    assert cluster.job(job)["Restarts"] == "1"
    record = completed(run)
    assert record is not None, log.read_text()
    assert record["steps"] == 200
    events = [row["what"] for row in read(run / "metrics.jsonl") if row["kind"] == "event"]
    assert events[:2] == ["stopped and saved", "resumed"]
