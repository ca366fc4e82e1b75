"""The sharded presets, every way of theirs but their size: stream, token decoder, layers computed
again, averaged weights, two processes; stopped under one engine and finished under another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import forked, free_port
from tests.runs import losses, newest, record

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

SMALL: dict[str, Any] = {
    "model.dim": 16, "model.depth": 2, "model.heads": 2, "model.mlp_dim": 32,
    "model.decoder_dim": 16, "model.decoder_depth": 1, "train.global_batch": 4,
    "train.micro_batch": 2, "train.log_every": 1, "train.eval_batch": 4, "data.n_per_class": 10,
    "data.stream_epoch": 40, "optim.schedule.warmup_steps": 2, "train.max_steps": 10,
    "train.eval_every_epochs": 1,
}  # fmt: skip


def _words(preset: str, run: Path, *more: str) -> list[str]:
    changes = {"run.dir": run, **SMALL}
    words = [f"--config=configs/mae/{preset}.yaml", *(f"{k}={v}" for k, v in changes.items())]
    return [*words, *more]


def test_a_sharded_preset_is_stopped_and_goes_on_under_another_engine(tmp_path: Path) -> None:
    run, alone = tmp_path / "large", tmp_path / "ddp"
    killer = ("tests.faults.killer", "term", 4, "--", *_words("large", run))
    done = forked(*killer, processes=2, port=free_port())
    assert done.returncode == 75, done.stderr
    assert newest(run).meta["machine"]["engine"] == "fsdp stage 3"

    other = ("engine=deepspeed", "shard.stage=2", "speed.recompute=false")
    done = forked("lensdist.train", *_words("large", run, *other))
    assert done.returncode == 0, done.stderr
    assert record(run)["steps"] == len(losses(run)) == 10

    plain = ("engine=ddp", "speed.recompute=false", "optim.lr=2.4e-3")  # as large, but for its size
    done = forked("lensdist.train", *_words("giant", alone, *plain))
    assert done.returncode == 0, done.stderr
    assert losses(run) == pytest.approx(losses(alone), rel=1e-3)
