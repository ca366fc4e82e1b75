"""Started on every process of a test: trains several tiny runs in one process group.

    worker.py OUT DATA PAIRS

Each run lands in OUT/<processes>/<task><variant>; the test compares those of different numbers of
processes: all of them, or those that are `paired`.
"""

from __future__ import annotations

import hashlib
import os
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lensdist.config import load
from lensdist.config.schema import schema_of
from lensdist.runs import phase
from lensdist.tasks import Stage, Task
from tests.conftest import LONG, settings

TASKS = ("mae", "finetune", "mass", "batchnorm", "common", "sr")
VARIANTS = ("", "-reproducible", "-auto")
STEPS = 20 if LONG else 10
_DROPOUT = {
    **dict.fromkeys(("mae", "finetune", "mass"), "model.dropout"),
    "common": "model.head_dropout",
    "sr": "model.encoder.dropout",
}


def paired(task: str, variant: str, processes: int) -> bool:
    """Whether a run is among those in which each two of the three meet; one process makes all."""
    four = (TASKS.index(task) + VARIANTS.index(variant)) % 3 == 0
    return LONG or processes == 1 or four == (processes == 4)


class BatchNormTask(Task[Any]):
    """A small convolutional net with BatchNorm and dropout, whose first half starts frozen.

    No biases before BatchNorm: their gradient is 0 but for rounding, which Adam would blow up.
    """

    name = "finetune"
    select = ("nll", "min")

    def __init__(self, cfg: Any, labels: tuple[str, ...], preprocess: Any, encoder: Any) -> None:
        self.labels, self.preprocess, self.weights = labels, preprocess, None
        self.dropout = 0.0 if cfg.train.micro_batch == "auto" else 0.2

    def network(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 4, 5, stride=4, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(self.dropout), nn.Linear(8, 3),
        )  # fmt: skip

    def stages(self, epochs: int) -> list[Stage]:
        return [Stage(1, ("3.", "4.", "9.")), Stage(epochs - 1, ("",))]

    def loss(self, model: nn.Module, batch: dict[str, Tensor], key: int) -> Tensor:
        return F.cross_entropy(model(self.preprocess(batch["image"])), batch["label"])

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": model(self.preprocess(batch["image"])), "label": batch["label"]}

    def score(self, outputs: dict[str, Tensor]) -> dict[str, float]:
        return {"nll": float(F.cross_entropy(outputs["logits"], outputs["label"]))}

    def describe(self) -> dict[str, Any]:
        return {"model": {}}


def _remember_weights() -> list[int]:
    """A digest of what runs end with, on every process: only one of them writes its own down."""
    digests: list[int] = []
    train = phase.train

    def remember(*args: Any) -> Any:
        outcome = train(*args)
        digests.append(_digest(outcome.model))  # now: what is exported is loaded into it later
        return outcome

    phase.train = remember
    return digests


def _digest(model: nn.Module) -> int:
    digest = hashlib.sha256()
    for _, value in sorted(model.state_dict().items()):
        digest.update(value.numpy().tobytes())
    return int.from_bytes(digest.digest()[:7], "little")


def _configuration(name: str, variant: str, folder: Path, data: Path) -> Any:
    """In at least two stages, but for the pretraining; three steps an epoch, or two."""
    task = "finetune" if name == "batchnorm" else name
    changes: dict[str, Any] = {
        "train.max_steps": STEPS, "train.log_every": 1, "train.ema": 0.9,
        "train.reproducible": str(variant == "-reproducible").lower(),
        "optim.clip_norm": 1.0, "augment.rot180": "true",
    }  # fmt: skip
    if task in ("finetune", "mass", "sr"):
        changes |= {"frozen_epochs": 1, "train.epochs": 6}
    if task == "sr":  # the same number of micro-batches a step, of few large images
        changes |= {"train.global_batch": 8, "train.micro_batch": 2, "data.train_images": 24}
    elif task in ("finetune", "common"):
        changes["data.labels_per_class"] = 16
    if name == "common":  # the heads on kept features, then one section more
        changes |= {"train.epochs": 9, "unfreeze_epochs": "[3,2,1,1,1,1]"}
    elif name in ("finetune", "mass", "sr"):
        changes["encoder"] = folder.parents[1] / "1" / "mae-reproducible"
    else:
        changes["train.epochs"] = 20
    if variant == "-auto":  # a micro-batch a process; nothing is drawn for it as a whole
        changes |= {"train.micro_batch": "auto", _DROPOUT[task]: 0}
        changes["train.sync_batchnorm"] = "true"
    config, *overrides = settings(task, data, folder, **changes)
    return load(Path(config.removeprefix("--config=")), overrides, schema=schema_of)


def main(out: Path, data: Path, pairs: Path) -> None:
    torch.set_num_threads(1)
    world = None
    original = phase.build_task
    weights = _remember_weights()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for name, variant in product(TASKS, VARIANTS):
        if not paired(name, variant, processes):
            continue
        folder = out / str(processes) / (name + variant)
        cfg = _configuration(name, variant, folder, pairs if name == "sr" else data)
        world = world or phase.context_of(cfg)
        phase.build_task = BatchNormTask if name == "batchnorm" else original  # type: ignore[assignment]
        phase.run(cfg, "auto", world)
        world.agree("weights", weights.pop())
    assert world is not None
    world.close(0, together=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
