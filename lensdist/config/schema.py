"""The configuration of a run: what `configs/<task>/<preset>.yaml` may say (torch-free).

Each part stands beside the code that reads it; here they are only put together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lensdist.config.base import Strict
from lensdist.data.config import AugmentConfig, DataConfig, PreprocessConfig
from lensdist.engine.config import (
    CheckpointConfig,
    OptimConfig,
    RunConfig,
    TrackConfig,
    TrainConfig,
)
from lensdist.errors import UserError
from lensdist.models.config import ClassifierConfig, MaeConfig, MaskConfig


class BaseRun(Strict):
    """What every task shares."""

    task: str
    preset: str = Field("custom", description="name of the preset, written into every result")
    seed: int = Field(0, ge=0, lt=2**63, description="every random number comes from it")
    engine: Literal["ddp"] = Field("ddp", description="how processes share the work")
    precision: Literal["no", "fp16", "bf16"] = Field(
        "no", description="autocast's type; weights and optimizer state stay float32"
    )
    run: RunConfig
    data: DataConfig
    preprocess: PreprocessConfig = PreprocessConfig()
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    track: TrackConfig = TrackConfig()


class MaeRun(BaseRun):
    """Pretraining of the masked autoencoder (task VI.A)."""

    task: Literal["mae"]
    model: MaeConfig = MaeConfig()
    mask: MaskConfig = MaskConfig()
    loss: Literal["image", "masked"] = Field(
        "image", description="mean squared error over the whole image, or the masked pixels only"
    )


class FinetuneRun(BaseRun):
    """Classification from the MAE's encoder (task VI.A), or from scratch."""

    task: Literal["finetune"]
    model: ClassifierConfig = ClassifierConfig()
    encoder: Path | None = Field(
        None, description="a finished MAE run, or its export; null: random weights"
    )
    frozen_epochs: int = Field(
        10, ge=0, description="epochs in which the encoder stays as it is; then everything trains"
    )
    linear_probe: bool = Field(False, description="the encoder never trains")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the cross-entropy")
    select: Literal["accuracy", "nll", "auc"] = Field(
        "accuracy", description="what validation chooses the best checkpoint by"
    )


AnyRun = MaeRun | FinetuneRun

TASKS: dict[str, type[BaseRun]] = {"mae": MaeRun, "finetune": FinetuneRun}


def schema_of(raw: dict[str, Any]) -> type[BaseRun]:
    """The model for a raw configuration, by its `task`.

    Raises:
        UserError: `task` is missing or names none.
    """
    task = raw.get("task")
    if not isinstance(task, str) or task not in TASKS:
        known = ", ".join(TASKS)
        raise UserError(f"task: {task!r} is not a task; use one of {known}")
    return TASKS[task]
