"""The configuration of a run: what `configs/<task>/<preset>.yaml` may say (torch-free).

Each part stands beside the code that reads it; here they are only put together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from lensdist.config.base import Positive, Strict
from lensdist.data.config import LIGHT_KEEPING, AugmentConfig, DataConfig, PreprocessConfig
from lensdist.engine.config import (
    CacheConfig,
    CheckpointConfig,
    OptimConfig,
    RunConfig,
    ShardConfig,
    SpeedConfig,
    TrackConfig,
    TrainConfig,
)
from lensdist.errors import UserError
from lensdist.models.config import (
    ClassifierConfig,
    EnsembleConfig,
    MaeConfig,
    MaskConfig,
    SuperResolverConfig,
)


class BaseRun(Strict):
    """What every task shares."""

    task: str
    preset: str = Field("custom", description="name of the preset, written into every result")
    seed: int = Field(0, ge=0, lt=2**63, description="every random number comes from it")
    engine: Literal["ddp", "fsdp", "deepspeed"] = Field(
        "ddp",
        description="how processes share the work: ddp, each holds all of the network; fsdp "
        "(torch's FSDP2) and deepspeed (its ZeRO), each holds a share (`shard`). Left out: what "
        "accelerate's launcher was told, else ddp",
    )
    shard: ShardConfig = ShardConfig()
    precision: Literal["no", "fp16", "bf16", "fp8"] = Field(
        "no",
        description="of matrix products and convolutions; weights and optimizer state stay "
        "float32. fp8: of wide linear layers, on GPUs that have it, and bf16 elsewhere",
    )
    speed: SpeedConfig = SpeedConfig()
    run: RunConfig
    data: DataConfig
    preprocess: PreprocessConfig = PreprocessConfig()
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cache: CacheConfig = CacheConfig()
    track: TrackConfig = TrackConfig()

    @property
    def selects(self) -> tuple[str, Literal["min", "max"]]:
        """The score of validation that selects the best checkpoint, and whether less is better."""
        raise NotImplementedError

    @property
    def fewest(self) -> int:
        """Images that a micro-batch needs, for BatchNorm after pooling."""
        return 2 if self._pools_into_batchnorm and not self.train.sync_batchnorm else 1

    @property
    def _pools_into_batchnorm(self) -> bool:
        return False

    @model_validator(mode="after")
    def _batchnorm_has_enough(self) -> Self:
        if self.train.micro() < (2 if self._pools_into_batchnorm else 1):
            raise ValueError("the head's BatchNorm needs micro-batches of 2 images or more")
        if self.train.sync_batchnorm and self.speed.compile == "whole":
            raise ValueError("train.sync_batchnorm goes with speed.compile: no, not whole")
        return self

    @model_validator(mode="after")
    def _engine_can(self) -> Self:
        if self.engine == "ddp":
            if self.shard.offload:
                raise ValueError("shard.offload goes with engine: fsdp or deepspeed, not ddp")
            if self.speed.cuda_graphs and self.speed.compile != "whole":
                raise ValueError("speed.cuda_graphs goes with speed.compile: whole")
            return self
        if self.train.reproducible:
            raise ValueError("train.reproducible goes with engine: ddp")
        if self.engine == "fsdp" and self.shard.stage == 1:
            raise ValueError("shard.stage: fsdp has stages 2 and 3; deepspeed has 1")
        if self.engine == "fsdp" and self.shard.offload and self.precision == "fp16":
            raise ValueError(
                "shard.offload: fsdp cannot agree on fp16's scale where gradients are in the "
                "machine's memory; use bf16"
            )
        if self.engine == "deepspeed" and self.precision == "fp16":
            raise ValueError(
                "precision: fp16 goes with engine ddp or fsdp; DeepSpeed would keep half-precision "
                "weights, which no other engine could go on from; use bf16"
            )
        if self.speed.cuda_graphs or self.speed.compile == "whole":
            raise ValueError(
                "speed.compile: whole and cuda_graphs go with engine: ddp; use compile: blocks"
            )
        return self

    @model_validator(mode="after")
    def _fits_lenses_of_the_common_task_only(self) -> Self:
        if self.preprocess.scale == "lens_fit" and self.task != "common":
            raise ValueError(f"preprocess.scale: lens_fit is for task common, not {self.task}")
        return self


class MaeRun(BaseRun):
    """Pretraining of the masked autoencoder (task VI.A)."""

    task: Literal["mae"]
    model: MaeConfig = MaeConfig()
    mask: MaskConfig = MaskConfig()
    loss: Literal["image", "masked"] = Field(
        "image", description="mean squared error over the whole image, or the masked pixels only"
    )

    @property
    def selects(self) -> tuple[str, Literal["min", "max"]]:
        return "mse_masked" if self.loss == "masked" else "mse", "min"


class ClassifierRun(BaseRun):
    """What all classifiers share."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the cross-entropy")
    select: Literal["accuracy", "nll", "auc"] = Field(
        "accuracy", description="what validation chooses the best checkpoint by"
    )

    @property
    def selects(self) -> tuple[str, Literal["min", "max"]]:
        if self.select == "nll":
            return "nll", "min"
        return "auc_macro" if self.select == "auc" else "accuracy", "max"


class FinetuneRun(ClassifierRun):
    """Classification from the MAE's encoder (task VI.A), or from scratch."""

    task: Literal["finetune"]
    model: ClassifierConfig = ClassifierConfig()
    encoder: Path | None = Field(
        None, description="a finished MAE run, or its export; null: random weights"
    )
    frozen_epochs: int = Field(
        10,
        ge=0,
        le=10**12,
        description="epochs in which the encoder stays as it is; then everything trains",
    )
    linear_probe: bool = Field(False, description="the encoder never trains")

    @property
    def _pools_into_batchnorm(self) -> bool:
        return self.model.head_norm


class CommonRun(ClassifierRun):
    """Classification by an ensemble of torchvision networks (common task)."""

    task: Literal["common"]
    model: EnsembleConfig = EnsembleConfig()
    init: Literal["imagenet", "random"] = Field(
        "imagenet", description="weights to start from; imagenet: torchvision's IMAGENET1K_V1"
    )
    weights: dict[str, Path] = Field(
        {}, description="torchvision's .pth files by name, for machines without network"
    )
    members_from: tuple[Path, ...] = Field(
        (), description="finished runs of one network each, to start the members from instead"
    )
    unfreeze: Literal["all", "progressive"] = Field(
        "all",
        description="progressive: first the heads train, then one section more a stage, back to "
        "the stem (the recipe)",
    )
    unfreeze_epochs: tuple[int, ...] | None = Field(
        None,
        description="epochs of each stage, from the heads back; null: train.epochs, shared out in "
        "proportion to the parameters of each section, at least 1",
    )

    @property
    def _pools_into_batchnorm(self) -> bool:
        return True

    @property
    def seen_bands(self) -> int:
        """Bands of what the network sees."""
        return self.preprocess.seen(self.model.in_channels, self.model.image_size)[0]

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        shape = (self.model.in_channels, self.model.image_size)
        if self.preprocess.scale == "lens_fit" and shape != (1, 150):
            raise ValueError(
                "preprocess.scale: lens_fit fits one band of 150x150 pixels, the common task's, "
                f"not {shape[0]} of {shape[1]}x{shape[1]}"
            )
        unknown = sorted(set(self.weights) - set(self.model.members))
        if unknown:
            raise ValueError(f"weights: {unknown[0]} is not one of model.members")
        if self.weights and (self.init != "imagenet" or self.members_from):
            raise ValueError("weights are ImageNet's: they go with init: imagenet alone")
        if self.members_from and len(self.members_from) != len(self.model.members):
            raise ValueError(
                f"members_from names {len(self.members_from)} runs for "
                f"{len(self.model.members)} members"
            )
        if self.unfreeze_epochs is not None:
            if self.unfreeze != "progressive":
                raise ValueError("unfreeze_epochs goes with unfreeze: progressive")
            if min(self.unfreeze_epochs, default=0) < 1:
                raise ValueError("unfreeze_epochs must be 1 or more each")
            if sum(self.unfreeze_epochs) != self.train.epochs:
                raise ValueError(
                    f"unfreeze_epochs adds up to {sum(self.unfreeze_epochs)}, not to "
                    f"train.epochs {self.train.epochs}"
                )
        return self


class SuperResolutionRun(BaseRun):
    """Super-resolution of pairs from the MAE's encoder (task VI.B), or from scratch."""

    task: Literal["sr"]
    model: SuperResolverConfig = SuperResolverConfig()
    encoder: Path | None = Field(
        None, description="a finished MAE run, or its export; null: random weights"
    )
    frozen_epochs: int = Field(
        5,
        ge=0,
        le=10**12,
        description="epochs in which the encoder stays as it is; then everything trains",
    )
    loss: Literal["mse", "poisson"] = Field(
        "mse",
        description="mse: squared error; poisson: divided by the variance that counting photons "
        "makes, brightness plus `floor`",
    )
    floor: Positive = Field(
        0.02,
        description="poisson: brightness at which the sky's noise is the source's, as the network "
        "sees it",
    )
    learn: Literal["hr", "truth"] = Field(
        "hr",
        description="truth: HR without its noise, known of simulated pairs only; take exact_means "
        "off, for LR's own noise is in its means",
    )
    data_range: Positive = Field(
        1.0, description="largest minus smallest value on disk, for PSNR and SSIM"
    )

    @property
    def selects(self) -> tuple[str, Literal["min", "max"]]:
        return "error", "min"

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.preprocess.scale not in LIGHT_KEEPING:
            raise ValueError(
                f"preprocess.scale: {self.preprocess.scale} would not keep sums of light; use "
                "minmax, standard or none"
            )
        if self.preprocess.scale == "standard" and (
            self.model.decoder == "residual" or self.loss == "poisson"
        ):
            raise ValueError(
                "preprocess.scale: standard goes with decoder: upconv and loss: mse; noise grows "
                "with brightness, which minmax and none keep"
            )
        if self.learn == "truth" and self.model.decoder == "residual" and self.model.exact_means:
            raise ValueError("learn: truth goes with model.exact_means: false, or LR's noise stays")
        return self


TASKS: dict[str, type[BaseRun]] = {
    "mae": MaeRun,
    "finetune": FinetuneRun,
    "common": CommonRun,
    "sr": SuperResolutionRun,
}


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
