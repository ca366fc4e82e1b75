"""The sharded presets, every way of theirs but their size: stream, token decoder, layers computed
again, averaged weights, two processes; stopped under one engine and finished under another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lensdist.phases import completed
from lensdist.tracking.metrics_log import read
from lensdist.training import checkpoint
from tests.conftest import forked, free_port

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

SMALL: dict[str, Any] = {
    "model.dim": 16, "model.depth": 2, "model.heads": 2, "model.mlp_dim": 32,
    "model.decoder_dim": 16, "model.decoder_depth": 1, "train.global_batch": 4,
    "train.micro_batch": 2, "train.log_every": 1, "train.eval_batch": 4, "data.n_per_class": 10,
    "data.stream_epoch": 40, "optim.schedule.warmup_steps": 2, "train.max_steps": 20,
    "train.eval_every_epochs": 1,
}  # fmt: skip


def _words(preset: str, run: Path, *more: str) -> list[str]:
    changes = {"run.dir": run, **SMALL}
    words = [f"--config=configs/mae/{preset}.yaml", *(f"{k}={v}" for k, v in changes.items())]
    return [*words, *more]


def test_a_sharded_preset_is_stopped_and_goes_on_under_another_engine(tmp_path: Path) -> None:
    run = tmp_path / "large"
    killer = ("tests.faults.killer", "term", 7, "--", *_words("large", run))
    done = forked(*killer, processes=2, port=free_port())
    assert done.returncode == 75, done.stderr
    saved, _ = checkpoint.newest(run / "checkpoints")
    assert saved is not None
    assert saved.meta["machine"]["engine"] == "fsdp stage 3"

    other = ("engine=deepspeed", "shard.stage=2", "speed.recompute=false")
    done = forked("lensdist.train", *_words("large", run, *other))
    assert done.returncode == 0, done.stderr
    record = completed(run)
    assert record is not None
    assert record["steps"] == 20
    losses = [r["loss"] for r in read(run / "metrics.jsonl") if r["kind"] == "train"]
    assert len(losses) == 20

    alone = tmp_path / "ddp"
    plain = ("engine=ddp", "speed.recompute=false", "optim.lr=2.4e-3")  # as large, but for its size
    done = forked("lensdist.train", *_words("giant", alone, *plain))
    assert done.returncode == 0, done.stderr
    plainly = [r["loss"] for r in read(alone / "metrics.jsonl") if r["kind"] == "train"]
    assert losses == pytest.approx(plainly, rel=1e-3)
