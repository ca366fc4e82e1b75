"""Jobs for the checks of a node, and a nvidia-smi."""

from __future__ import annotations

from pathlib import Path

from slurm.job import Job, Target
from tests.unit.jobs import make_job

H100 = "NVIDIA H100 80GB HBM3, GPU-{0}, {1}, 34\n"
GOOD = H100.format("aa", 0) + H100.format("bb", 0)


def node_job(tmp_path: Path, sent: dict[str, str] | None = None, **cluster: object) -> Job:
    """A job on this machine, whose disk is nobody's concern unless a test says so."""
    limits = cluster.pop("preflight", {})
    assert isinstance(limits, dict)
    limits = {"min_free_gb": 0, "min_write_mb_s": 0} | limits
    for folder in ("code", "runs"):
        (tmp_path / folder).mkdir(exist_ok=True)
    return make_job(
        Target(phase="finetune", run=tmp_path / "runs" / "tiny" / "finetune"),
        tmp_path / "state",
        cluster={"executor": "slurm", "preflight": limits, **cluster},
        code=tmp_path / "code",
        versions=sent or {},
    )


def impatient(job: Job, seconds: float) -> Job:
    """The same, with less patience than a user can ask for."""
    limits = job.cluster.preflight.model_copy(update={"seconds": seconds})
    return job.model_copy(update={"cluster": job.cluster.model_copy(update={"preflight": limits})})


def fake_smi(tmp_path: Path, output: str, code: int = 0, before: str = "") -> None:
    """A nvidia-smi that answers the one question that is asked."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir(exist_ok=True)
    asked = "--query-gpu=name,uuid,ecc.errors.uncorrected.volatile.total,temperature.gpu"
    asked += " --format=csv,noheader,nounits"
    tool.write_text(
        f'#!/bin/sh\n[ "$*" = "{asked}" ] || exit 2\n{before}\ncat <<X\n{output}X\nexit {code}\n'
    )
    tool.chmod(0o755)
