"""Every task's own network under sharding engines, on two processes: the losses of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import forked, free_port, settings
from tests.runs import losses, record

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

SHARDED = {"fsdp": ["engine=fsdp"], "zero2": ["engine=deepspeed", "shard.stage=2"]}
SHARDED["zero3"] = ["engine=deepspeed", "shard.stage=3"]


@pytest.mark.parametrize(
    ("task", "engine"),
    [
        ("common", "fsdp"),
        pytest.param("common", "zero3", marks=pytest.mark.long),
        ("finetune", "fsdp"),
        ("mass", "zero3"),
        ("sr", "zero2"),
    ],
)
def test_a_task_trains_as_on_one_process(
    tiny_set: Path, pairs_set: Path, tmp_path: Path, task: str, engine: str
) -> None:
    data = pairs_set if task == "sr" else tiny_set
    # As a sharded network does it: over a few images BatchNorm makes much of rounding.
    plain = ["speed.channels_last=false", "cache.max_gb=0"]
    for name, how in (("alone", plain), ("shared", SHARDED[engine])):
        run = tmp_path / name
        steps = {"train.max_steps": 3, "train.log_every": 1, "train.ema": 0.9, "optim.lr": 1e-4}
        words = [*settings(task, data, run, **steps), *how]
        together = {"processes": 2, "port": free_port()} if name == "shared" else {}
        done = forked("lensdist.train", *words, **together)
        assert done.returncode == 0, done.stderr
        assert record(run)["steps"] == 3
    assert losses(tmp_path / "shared") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
