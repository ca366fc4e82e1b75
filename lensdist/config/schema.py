"""The configuration of a run: the keys that `configs/<task>/<preset>.yaml` may hold (torch-free).

Settings are declared beside the code that reads them; this module composes them.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, Self, cast

from pydantic import Field, create_model, model_validator

from lensdist.data.config import AugmentConfig, DataConfig, PreprocessConfig
from lensdist.distributed.config import (
    CacheConfig,
    CheckpointConfig,
    OptimConfig,
    RunConfig,
    ShardConfig,
    SpeedConfig,
    TrackConfig,
    TrainConfig,
)
from lensdist.tasks.registry import built_in, task_class
from lensdist.tasks.settings import TaskSettings
from lensdist.utils.errors import UserError
from lensdist.utils.plugins import trust


class BaseRun(TaskSettings):
    """The settings of every run, whatever its task."""

    task: str = Field(
        description="The task to train: its name, or the import path of one of your own."
    )
    preset: str = Field("custom", description="The name of the preset, written into every result.")
    seed: int = Field(0, ge=0, lt=2**63, description="The seed of all random numbers of the run.")
    engine: Literal["ddp", "fsdp", "deepspeed"] = Field(
        "ddp",
        description="The parallel strategy: with ddp every process holds the whole network; with "
        "fsdp (torch's FSDP2) and deepspeed (ZeRO) each holds a shard (see `shard`). If left out: "
        "the choice of accelerate's launcher, else ddp.",
    )
    shard: ShardConfig = ShardConfig()
    precision: Literal["no", "fp16", "bf16", "fp8"] = Field(
        "no",
        description="The precision of matrix products and convolutions; weights and optimizer "
        "state stay in float32. fp8: in wide linear layers on GPUs with fp8, bf16 elsewhere.",
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

    def programs(self) -> list[str]:
        """Return the import paths of the user's own classes that the run uses."""
        members = getattr(getattr(self, "model", None), "members", ())
        return [path for path in (self.task, *members) if ":" in path]

    @property
    def fewest(self) -> int:
        """The fewest images of a micro-batch, which BatchNorm after pooling decides."""
        return 2 if self.pools_into_batchnorm and not self.train.sync_batchnorm else 1

    @model_validator(mode="after")
    def _batchnorm_has_enough(self) -> Self:
        if self.train.micro() < (2 if self.pools_into_batchnorm else 1):
            raise ValueError("the head's BatchNorm needs micro-batches of 2 images or more")
        if self.train.sync_batchnorm and self.speed.compile == "whole":
            raise ValueError("train.sync_batchnorm needs speed.compile: no, not whole")
        return self

    @model_validator(mode="after")
    def _engine_can(self) -> Self:
        if self.engine == "ddp":
            if self.shard.offload:
                raise ValueError("shard.offload needs engine: fsdp or deepspeed, not ddp")
            if self.speed.cuda_graphs and self.speed.compile != "whole":
                raise ValueError("speed.cuda_graphs needs speed.compile: whole")
            return self
        if self.train.reproducible:
            raise ValueError("train.reproducible needs engine: ddp")
        if self.engine == "fsdp" and self.shard.stage == 1:
            raise ValueError("shard.stage: fsdp has stages 2 and 3; deepspeed has 1")
        if self.engine == "fsdp" and self.shard.offload and self.precision == "fp16":
            raise ValueError(
                "shard.offload: fsdp cannot use fp16's loss scale with gradients in the machine's "
                "memory; use bf16"
            )
        if self.engine == "deepspeed" and self.precision == "fp16":
            raise ValueError(
                "precision: fp16 needs engine ddp or fsdp; DeepSpeed would keep half-precision "
                "weights, from which no other engine could continue; use bf16"
            )
        if self.speed.cuda_graphs or self.speed.compile == "whole":
            raise ValueError(
                "speed.compile: whole and cuda_graphs need engine: ddp; use compile: blocks"
            )
        return self

    @model_validator(mode="after")
    def _suits_its_task(self) -> Self:
        self.check_preprocess(self.preprocess)
        self.check_run(self)
        return self


@cache
def run_schema(task: str) -> type[BaseRun]:
    """Compose the settings of every run with those of a task.

    Raises:
        UserError: there is no such task.
    """
    settings = task_class(task).settings
    name = settings.__name__.removesuffix("Settings") + "Run"
    about = BaseRun.model_fields["task"].description
    fields: dict[str, Any] = {"task": (Literal[task], Field(description=about))}
    bases = cast(tuple[type[BaseRun], ...], (settings, BaseRun))
    return create_model(name, __base__=bases, __doc__=settings.__doc__, **fields)


def schema_of(raw: dict[str, Any]) -> type[BaseRun]:
    """Return the model of a configuration that the user gives; trust its import paths.

    Raises:
        UserError: `task` is missing or names no task.
    """
    model = raw.get("model")
    members = model.get("members") if isinstance(model, dict) else None
    paths = [raw.get("task"), *(members if isinstance(members, list) else ())]
    trust(*(path for path in paths if isinstance(path, str) and ":" in path))
    return recorded_schema(raw)


def recorded_schema(raw: dict[str, Any]) -> type[BaseRun]:
    """Return the model of a configuration that was found in a run's folder.

    Raises:
        UserError: as `schema_of`, or its task is a class that the user has not named.
    """
    task = raw.get("task")
    if not isinstance(task, str):
        known = ", ".join(built_in())
        raise UserError(f"task: {task!r} is not a task; use one of {known}")
    return run_schema(task)
