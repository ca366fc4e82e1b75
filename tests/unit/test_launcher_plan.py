"""The engine in a plan: from the run, accelerate's file or the cluster's environment, and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lensdist.runs import accelerate_launch as launcher
from lensdist.utils.errors import UserError
from slurm.plan import builder as planning
from slurm.plan.builder import make_plan
from slurm.plan.plan import Plan
from slurm.plan.render import render_plan
from tests.chains import write_chain, write_cluster
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"}


def planned(folder: Path, *words: str, **cluster: Any) -> Plan:
    return make_plan(write_chain(folder, folder / "set"), write_cluster(folder, **cluster), words)


def engines(plan: Plan) -> list[tuple[str, int] | None]:
    return [step.config and (step.config.engine, step.config.shard.stage) for step in plan.steps]


def test_the_engine_is_shown_where_it_is_not_ddp(tmp_path: Path) -> None:
    words = ("pretrain.engine=deepspeed", "pretrain.shard.stage=1", "pretrain.shard.offload=true")
    lines = [
        line for line in render_plan(planned(tmp_path, *words)).splitlines() if "  engine " in line
    ]
    told = "deepspeed, stage 1: the optimizer's state sharded, in the machine's memory"
    assert lines == [f"  engine   {told}"]
    assert "  engine " not in render_plan(planned(tmp_path))


def test_the_clusters_environment_decides_what_the_runs_leave_out(tmp_path: Path) -> None:
    assert engines(planned(tmp_path, env=FSDP)) == [("fsdp", 2), ("fsdp", 2), None]
    with pytest.raises(UserError) as e:
        planned(tmp_path, "pretrain.engine=ddp", "finetune.shard.stage=3", env=FSDP)
    told = str(e.value).splitlines()
    assert len(told) == 2
    assert told[0].startswith("pretrain: engine: the run's configuration sets 'ddp' but")
    assert told[1].startswith("finetune: shard.stage: the run's configuration sets 3 but")


def test_accelerates_file_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are launched with --multi_gpu, by which the file's engine would be lost."""
    root = tmp_path / "clone"
    root.mkdir()
    (root / "lensdist").symlink_to(ROOT / "lensdist")
    monkeypatch.setattr(planning, "ROOT", root)
    file = root / "accelerate_config.yaml"
    data = yaml.safe_load((ROOT / "configs/accelerate/deepspeed-zero2.yaml").read_text())
    file.write_text(yaml.safe_dump(data))
    assert engines(planned(tmp_path)) == [("deepspeed", 2), ("deepspeed", 2), None]

    # 16 images in micro-batches of 4: two for each of two processes.
    data["deepspeed_config"]["gradient_accumulation_steps"] = 2
    file.write_text(yaml.safe_dump(data))
    shape = {"executor": "slurm", "nodes": 2, "gpus_per_node": 1}
    assert len(planned(tmp_path, **shape).steps) == 3
    with pytest.raises(UserError, match=f"{file} sets gradient_accumulation_steps to 2; leave it"):
        planned(tmp_path)


def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "find_spec", lambda name: None)
    with pytest.raises(UserError) as e:
        planned(tmp_path, "engine=deepspeed")
    assert str(e.value).count("deepspeed is not installed") == 2
    for other in ({"python": "/opt/python"}, {"container": ["apptainer", "exec", "X.sif"]}):
        assert len(planned(tmp_path, "engine=deepspeed", **other).steps) == 3
