"""A launcher that ends before its processes: they save at one step, and leave."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lensdist.tracking.metrics_log import read
from lensdist.utils import outcome
from tests.conftest import ROOT, command, environment, settings, until
from tests.sockets import children, listeners

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a launcher's end"),
]

LONG = {"train.max_steps": 100_000, "train.epochs": 100_000, "train.eval_every_epochs": 1000}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.parametrize(
    ("launcher", "number"),
    [("torchrun", signal.SIGKILL), ("accelerate", signal.SIGUSR2)],
)
def test_processes_save_when_their_launcher_has_died(
    launcher: str, number: int, tiny_set: Path, tmp_path: Path
) -> None:
    run, said = tmp_path / "run", tmp_path / "words"
    words = ["lensdist.train", *settings("mae", tiny_set, run, **LONG)]
    start = command(*words, processes=2)
    if launcher == "torchrun":
        start = [sys.executable, *TORCHRUN, "-m", *words]
    env = environment(**{outcome.FOLDER: str(said)})
    with subprocess.Popen(start, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: read(run / "metrics.jsonl"))
        _, *processes = children(process.pid)
        assert len(processes) == 2
        # What the launcher itself listens on is its own.
        found = {address for each in processes for address, _ in listeners(each)}
        assert found == {"127.0.0.1"}
        process.send_signal(number)
        try:
            until(lambda: [w.kind for w in outcome.read(said)] == ["saved", "saved"])
            until(lambda: not any(Path(f"/proc/{each}").exists() for each in processes))
        finally:
            for each in children(process.pid) + processes:
                subprocess.run(["kill", "-KILL", str(each)], check=False, capture_output=True)
        process.communicate(timeout=120)
    last = read(run / "metrics.jsonl")[-1]
    assert (last["what"], last["detail"]) == ("stopped and saved", "its launcher is gone")
    assert (run / "checkpoints" / f"step-{last['step']:08d}").exists()
