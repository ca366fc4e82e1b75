"""Job files, as tests need them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lensdist.utils.files import write_atomic
from slurm.config.cluster import Cluster
from slurm.job import Job, Target
from tests.conftest import ROOT


def make_job(target: Target, state: Path, submission: str = "now", **more: Any) -> Job:
    """Write the job file of a phase in a submission's folder; `more` are fields of `Job`."""
    folder = state / submission
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)
    usual = {"chain": "tiny", "needs": (), "argv": ("-c", ""), "cwd": state.parent, "code": ROOT}
    cluster = Cluster.model_validate(more.pop("cluster", {}))
    given = usual | more | {"target": target, "state": state, "folder": folder}
    job = Job(cluster=cluster, **given)
    write_atomic(job.file, job.model_dump_json())
    return job
