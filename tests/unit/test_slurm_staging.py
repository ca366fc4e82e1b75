"""A packed set on a node's own disk: copied once, checked, removed when others need the room."""

from __future__ import annotations

import json
import os
from collections import namedtuple
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError

from lensdist.config import load
from lensdist.config.schema import schema_of
from lensdist.data.manifest import Manifest
from lensdist.runs import phase
from lensdist.utils.launched import STAGED
from slurm.config.cluster import Cluster
from slurm.job import Job, Target
from slurm.job_side import staging
from tests.conftest import ROOT
from tests.unit.jobs import make_job

pytestmark = pytest.mark.unit

Usage = namedtuple("Usage", "free")


def _job(tmp_path: Path, data: Path) -> Job:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"data": {"path": str(data)}}))
    argv = ("-m", "lensdist.train", "--config", str(config))
    (tmp_path / "disk").mkdir(exist_ok=True)
    cluster = {"executor": "slurm", "stage": "data", "stage_to": str(tmp_path / "disk")}
    target = Target(phase="pretrain", run=tmp_path / "run")
    return make_job(target, tmp_path / "state", argv=argv, cluster=cluster)


def _staged(job: Job) -> tuple[str | None, list[str]]:
    said: list[str] = []
    with staging.staged(job, said.append) as found:
        return found.get(STAGED), said


def test_a_set_is_copied_once_and_again_if_the_copy_is_damaged(
    tmp_path: Path, tiny_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _job(tmp_path, tiny_set)
    where, said = _staged(job)
    assert where is not None, said
    copy = Path(where)
    assert Manifest.load(copy) == Manifest.load(tiny_set)
    images = copy / "images.npy"
    first = images.stat().st_ino
    assert _staged(job) == (where, [])
    assert images.stat().st_ino == first
    os.truncate(images, 100)
    assert _staged(job) == (where, [])
    assert images.read_bytes() == (tiny_set / "images.npy").read_bytes()
    # The run reads it, under the name that its configuration has.
    words = [f"data.path={tiny_set}", f"run.dir={tmp_path / 'run'}"]
    config = load(ROOT / "configs" / "mae" / "debug.yaml", words, schema=schema_of)
    monkeypatch.setenv(STAGED, where)
    assert phase._data(config, cast(Any, None)) == copy


def test_what_no_job_uses_makes_room(
    tmp_path: Path, tiny_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _job(tmp_path, tiny_set)
    root = tmp_path / "disk" / f"lensdist-{os.getuid()}"
    (root / "unused").mkdir(parents=True)
    (root / "used").mkdir()
    root.chmod(0o700)
    monkeypatch.setattr(
        staging.shutil, "disk_usage", lambda _: Usage(0 if (root / "unused").exists() else 1 << 40)
    )
    with (root / "used.lock").open("w") as lock:
        staging.fcntl.flock(lock, staging.fcntl.LOCK_SH)
        where, said = _staged(job)
    assert where is not None, said
    assert sorted(p.name for p in root.iterdir() if p.is_dir()) == sorted(
        ["used", Path(where).name]
    )


def test_without_room_the_run_reads_the_set_where_it_is(
    tmp_path: Path, tiny_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: Usage(1 << 20))
    where, (sentence,) = _staged(_job(tmp_path, tiny_set))
    assert where is None
    assert "the data are read where they are" in sentence
    assert "has 0.0 GB free" in sentence


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"stage": "env"}, "an environment cannot move"),
        ({"stage": "data", "container": ["apptainer"]}, "does not see the node's disk"),
    ],
)
def test_what_cannot_be_staged_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Cluster.model_validate({"executor": "slurm", **settings})
