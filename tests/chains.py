"""A chain of two tiny phases and their evaluation, and ways to send it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from slurm.attempts import AttemptLog
from tests.conftest import ROOT, environment, settings

ODD = '-it\'s a "$HOME" dïr; INDEX'
"""Name of a folder that no shell, and no option parser, takes as it stands."""

SUBMIT = [sys.executable, str(ROOT / "slurm" / "submit.py")]


def write_chain(folder: Path, data: Path, steps: int = 6, **more: Any) -> Path:
    """`chain.yaml`: pretrain -> finetune -> evaluate, with runs in `folder/runs`."""

    def tiny(task: str) -> list[str]:
        words = settings(task, data, folder, **{"train.max_steps": steps, "train.log_every": 2})
        return [w for w in words if not w.startswith(("--config", "run.dir="))]

    configs = ROOT / "configs"
    phases = {
        "pretrain": {"train": str(configs / "mae" / "debug.yaml"), "set": tiny("mae")},
        "finetune": {
            "train": str(configs / "finetune" / "debug.yaml"),
            "after": ["pretrain"],
            "set": [*tiny("finetune"), "frozen_epochs=1", "encoder={pretrain}"],
        },
        "evaluate": {"evaluate": "finetune"},
    }
    file = folder / "chain.yaml"
    text = {"name": "tiny", "runs": str(folder / "runs"), "phases": phases} | more
    file.write_text(json.dumps(text, indent=1))
    return file


def write_cluster(folder: Path, **settings: Any) -> Path:
    """`cluster.yaml`."""
    file = folder / "cluster.yaml"
    usual = {"executor": "local", "walltime": 20, "requeue": {"backoff": 0}}
    file.write_text(json.dumps(usual | settings))
    return file


def submit(
    command: str,
    chain: Path,
    cluster: Path,
    *words: str,
    code: int = 0,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`python slurm/submit.py …`, from the chain's folder."""
    done = subprocess.run(
        [*SUBMIT, command, "--chain", str(chain), "--cluster", str(cluster), *words],
        cwd=chain.parent,
        env=_environment(env),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def start_submit(
    chain: Path, cluster: Path, *words: str, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """The same of `submit`, without waiting."""
    return subprocess.Popen(
        [*SUBMIT, "submit", "--chain", str(chain), "--cluster", str(cluster), *words],
        cwd=chain.parent,
        env=_environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _environment(more: dict[str, str] | None) -> dict[str, str]:
    kept = environment(**(more or {}))
    return {k: v for k, v in kept.items() if k not in ("ACCELERATE_USE_CPU", "PYTHONPATH")}


def jobs_of(runs: Path) -> dict[str, str]:
    """The job ids of the newest submission, by phase."""
    logs = {file.stem: AttemptLog(file) for file in runs.glob(".submit/ledger/*.jsonl")}
    sent = {name: e for name, log in logs.items() for e in log.events() if e.what == "sent"}
    newest = max(sent.values(), key=lambda event: event.time).submission
    now = [(int(e.job.partition("_")[0]), name) for name, e in sent.items()]
    return {name: sent[name].job for _, name in sorted(now) if sent[name].submission == newest}
