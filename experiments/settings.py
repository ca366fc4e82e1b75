"""Settings of the result tables; each field is a flag of its command (torch-free)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from lensdist.utils.settings import Strict

Size = Literal["small", "full"]
Noise = Literal["none", "euclid", "deeplense_euclid"]
Labels = Annotated[int, Field(ge=2)]
Images = Annotated[int, Field(ge=6)]

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
IMAGES = {"small": 5_000, "full": 30_000}
PRESETS = {"small": "small.yaml", "full": "best.yaml"}
STEPS = {"small": 200, "full": 2_000}
PRETRAIN_STEPS = {"small": 2_500, "full": 30_000}

Method = Literal["reference", "best", "best without the fit"]

TRAINED_ON = {"small": (300, 3_000), "full": (300, 3_000, 30_000)}
PAIRS = (100, 1_000, 10_000)
PAIR_IMAGES = 4_200
PAIR_STEPS = {"small": 2_000, "full": 40_000}
COMMON_IMAGES = {"small": 2_000, "full": 12_500}


class Table(Strict):
    """The settings of all tables."""

    out: Path = Field(description="folder for all results, runs and simulated images")
    seeds: int = Field(3, ge=1, le=100, description="number of runs with different random draws")
    size: Size = Field(
        "small", description="size of the presets: small, for CPUs; full, for one GPU"
    )
    n_per_class: int | None = Field(
        None, ge=20, description="simulated images per class (default: by size)"
    )
    jobs: int = Field(1, ge=1, le=256, description="number of runs at a time")
    configs: Path = Field(CONFIGS, description="folder of presets")
    overrides: tuple[str, ...] = Field((), description="settings of all runs")


class FewLabels(Table):
    """Settings of `lensdist bench few-labels`."""

    labels: tuple[Labels, ...] = Field(
        (30, 100, 300, 1000), description="labelled images per class"
    )
    noise: tuple[Noise, ...] = Field(("none", "euclid"), description="detectors to simulate")
    steps: int | None = Field(
        None, ge=1, description="steps of each fine-tuning (default: small 200, full 2,000)"
    )
    pretrain_steps: int | None = Field(
        None, ge=1, description="steps of each pretraining (default: small 2,500, full 30,000)"
    )

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
        """Simulated images per class."""
        return self.n_per_class or IMAGES[self.size]

    @property
    def finetuning(self) -> int:
        """Steps of each fine-tuning."""
        return self.steps or STEPS[self.size]

    @property
    def pretraining(self) -> int:
        """Steps of each pretraining."""
        return self.pretrain_steps or PRETRAIN_STEPS[self.size]


class CommonTable(Table):
    """Settings of `lensdist bench common`."""

    images: tuple[Images, ...] | None = Field(
        None,
        description="labelled images of all classes, to train and to choose weights with (default: "
        "small 300,3000; full 300,3000,30000)",
    )
    methods: tuple[Method, ...] = Field(
        get_args(Method), description="rows for each number of images"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.trained_on:
            raise ValueError("give at least one number of images")
        for_training = int(0.8 * self.per_class)
        if max(self.trained_on) > 3 * for_training:
            raise ValueError(
                f"{max(self.trained_on)} images asked for, but only {3 * for_training} of the "
                "simulated ones are for training; raise --n-per-class"
            )
        if not self.methods:
            raise ValueError("give at least one method")
        odd = [n for n in self.trained_on if n % 3]
        if odd:
            raise ValueError(f"{odd[0]} images cannot be shared evenly by three classes")
        return self

    @property
    def trained_on(self) -> tuple[int, ...]:
        """Numbers of training images of all classes; one group of rows of the table each."""
        return TRAINED_ON[self.size] if self.images is None else self.images

    @property
    def per_class(self) -> int:
        """Simulated images per class: 8 in 10 to train on, 1 to validate, 1 to test."""
        return self.n_per_class or COMMON_IMAGES[self.size]


class SuperResolutionTable(Table):
    """Settings of `lensdist bench super-resolution`."""

    seeds: int = Field(
        5, ge=1, le=100, description="number of runs; half as many with the most pairs"
    )
    pairs: tuple[Images, ...] | None = Field(
        None, description="training pairs (default: 100,1000,10000)"
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="steps of runs with the most pairs; half as many for a tenth of them "
        "(default: small 2,000, full 40,000)",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.trained_on:
            raise ValueError("give at least one number of pairs")
        for_training = int(0.8 * 3 * self.per_class)
        if max(self.trained_on) > for_training:
            raise ValueError(
                f"{max(self.trained_on)} pairs asked for, but only {for_training} of the "
                "simulated ones are for training; raise --n-per-class"
            )
        return self

    @property
    def trained_on(self) -> tuple[int, ...]:
        """Numbers of training pairs, ascending."""
        return tuple(sorted(PAIRS if self.pairs is None else self.pairs))

    @property
    def per_class(self) -> int:
        """Simulated pairs of each of three kinds of substructure: 8 in 10 to train on."""
        return self.n_per_class or PAIR_IMAGES

    def steps_of(self, n: int) -> int:
        """Return the steps of runs with n pairs: half as many for a tenth of the most pairs."""
        most = self.steps or PAIR_STEPS[self.size]
        halvings = math.log10(self.trained_on[-1] / n)
        return max(1, round(most / math.pow(2, halvings)))

    def seeds_of(self, n: int) -> int:
        """Return the number of runs with n pairs: results with few pairs vary most."""
        return self.seeds if n < self.trained_on[-1] else max(1, self.seeds // 2)
