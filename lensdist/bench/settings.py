"""What a benchmark may be told (torch-free)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lensdist.config.base import Strict

Size = Literal["small", "full"]
Noise = Literal["none", "euclid"]
Labels = Annotated[int, Field(ge=2)]

IMAGES = {"small": 5_000, "full": 30_000}
PRESETS = {"small": "small.yaml", "full": "best.yaml"}
STEPS = {"small": 200, "full": 2_000}
PRETRAIN_STEPS = {"small": 2_500, "full": 30_000}


class FewLabels(Strict):
    """`lensdist bench few-labels`."""

    out: Path
    labels: tuple[Labels, ...] = (30, 100, 300, 1000)
    seeds: int = Field(3, ge=1, le=100)
    noise: tuple[Noise, ...] = ("none", "euclid")
    size: Size = "small"
    steps: int | None = Field(None, ge=1)
    pretrain_steps: int | None = Field(None, ge=1)
    n_per_class: int | None = Field(None, ge=20)
    jobs: int = Field(1, ge=1, le=256)
    configs: Path = Path(__file__).resolve().parents[2] / "configs"
    overrides: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.labels or not self.noise:
            raise ValueError("give at least one number of labels and one kind of noise")
        for_training = int(0.8 * self.images)
        if max(self.labels) > for_training:
            raise ValueError(
                f"{max(self.labels)} labels per class asked for, but of {self.images} images per "
                f"class only {for_training} are for training; raise --n-per-class"
            )
        return self

    @property
    def images(self) -> int:
        """Simulated per class."""
        return self.n_per_class or IMAGES[self.size]

    @property
    def finetuning(self) -> int:
        """Steps of each fine-tuning."""
        return self.steps or STEPS[self.size]

    @property
    def pretraining(self) -> int:
        """Steps of each pretraining."""
        return self.pretrain_steps or PRETRAIN_STEPS[self.size]
