"""Started on every process of a test: trains a small network under every engine and precision.

    engines_worker.py OUT DATA

Runs land in OUT/<processes>/<engine>-<precision>: all of them, or those that are `paired`. On two
processes, shares are offloaded as well (<engine>-offload), and what four have saved half way goes
on, each under another engine (<engine>-from-<engine>). There, and once on one, each process has one
micro-batch, BatchNorm is synchronised, and nothing is dropped (<engine>-auto).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from lensdist.config import load
from lensdist.config.schema import schema_of
from lensdist.models.config import EncoderConfig
from lensdist.models.vit import Block
from lensdist.runs import phase
from lensdist.tasks.types import Stage
from tests.conftest import LONG, settings
from tests.distributed.worker import BatchNormTask

STEPS, HALF = 20 if LONG else 10, 5
ENGINES = ("ddp", "fsdp", "zero1", "zero2", "zero3")
PRECISIONS = ("no", "bf16")
GOES_ON = {"zero2": "ddp", "zero1": "zero3", "zero3": "fsdp", "fsdp": "zero1", "ddp": "zero2"}
"""Saved by four processes under the first, gone on from by two under the second."""


# One class of DeepSpeed's is stage 1 and stage 2.
UNLIKE = ENGINES if LONG else tuple(engine for engine in ENGINES if engine != "zero1")
"""Engines that are tried with offloaded shares, and with one micro-batch a process."""


def paired(processes: int, engine: str, precision: str) -> bool:
    """Whether a run is one of those in which each two of the three meet at least once.

    Those that go on and those with offloaded shares are two processes in float32 already.
    """
    if LONG:
        return True
    if processes == 1:
        return engine == "ddp" or (precision == "bf16") == (engine in ("fsdp", "zero2"))
    if (processes, engine, precision) in ((4, "zero3", "bf16"), (2, "ddp", "no")):
        return True
    return (precision == "no") == (processes == 4)


class Network(nn.Module):
    """All that an engine can get wrong: BatchNorm, dropout, layers, an axis shorter than four."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        cfg = EncoderConfig(dim=16, heads=2, mlp_dim=24, depth=2, dropout=dropout)
        # No bias before BatchNorm: its gradient is 0 but for rounding, which Adam would blow up.
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, 8, stride=8, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.depth))
        self.shift = nn.Parameter(torch.zeros(1, 1, 16))
        self.head = nn.Sequential(nn.BatchNorm1d(16), nn.Dropout(dropout), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.stem(x), "b d h w -> b (h w) d") + self.shift
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.mean(1))


class ThreeStages(BatchNormTask):
    """Three stages, a boundary before and one after the state that others go on from."""

    def network(self) -> nn.Module:
        return Network(self.dropout / 2)

    def stages(self, epochs: int) -> list[Stage]:
        half = ("head.", "blocks.1.", "stem.1.")
        return [Stage(1, ("head.",)), Stage(1, half), Stage(epochs - 2, ("",))]


def configuration(
    engine: str, precision: str, data: Path, run: Path, *, offload: bool = False, auto: bool = False
) -> Any:
    """Three steps an epoch, of four micro-batches or of one a process, averaged and clipped."""
    changes: dict[str, Any] = {
        "data.labels_per_class": 16,
        "train.max_steps": STEPS, "train.log_every": 1, "train.ema": 0.9, "train.epochs": 7,
        "optim.clip_norm": 0.5, "optim.weight_decay": 0.05, "checkpoint.every_steps": HALF,
        "checkpoint.keep": 9, "train.eval_every_epochs": 2, "precision": precision,
        "engine": engine.rstrip("123"),
    }  # fmt: skip
    if engine.startswith("zero"):
        changes |= {"engine": "deepspeed", "shard.stage": engine[-1]}
    if offload:
        changes["shard.offload"] = "true"
    if auto:
        changes |= {"train.micro_batch": "auto", "train.sync_batchnorm": "true"}
        changes["optim.clip_norm"] = "null"  # the norm is measured all the same
    config, *overrides = settings("finetune", data, run, **changes)
    return load(Path(config.removeprefix("--config=")), overrides, schema=schema_of)


def main(out: Path, data: Path) -> None:
    torch.set_num_threads(1)
    phase.build_task = ThreeStages  # type: ignore[assignment]
    world = phase.context_of(configuration("ddp", "no", data, out))
    here = out / str(world.size)

    def trained(
        name: str, engine: str, precision: str = "no", resume: str = "auto", **how: bool
    ) -> None:
        cfg = configuration(engine, precision, data, here / name, **how)
        assert phase.run(cfg, resume, phase.context_of(cfg)) == 0

    for engine in ENGINES:
        for precision in PRECISIONS:
            if paired(world.size, engine, precision):
                trained(f"{engine}-{precision}", engine, precision)
        if (world.size == 2 and engine in UNLIKE) or (world.size, engine) == (1, "ddp"):
            trained(f"{engine}-auto", engine, auto=True)
        if world.size == 2 and engine in UNLIKE and engine != "ddp":
            trained(f"{engine}-offload", engine, offload=True)
    for before, after in GOES_ON.items() if world.size == 2 else ():
        saved = out / "4" / f"{before}-no" / "checkpoints" / f"step-{HALF:08d}"
        trained(f"{after}-from-{before}", after, resume=str(saved))
    world.close(0, together=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
