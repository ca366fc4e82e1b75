"""Settings of the training loop (torch-free)."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lensdist.utils.errors import UserError
from lensdist.utils.settings import Count, Epochs, Positive, Strict

Decay = Annotated[float, Field(ge=0, lt=1)]


class ScheduleConfig(Strict):
    """The learning rate as a function of the optimizer step."""

    kind: Literal["constant", "cosine", "step"] = Field(
        "constant",
        description="The shape of the learning rate: constant; cosine, which falls to `final`; or "
        "step, which multiplies it by `gamma` every `step_epochs`.",
    )
    warmup_steps: int = Field(
        0, ge=0, le=10**12, description="The length of the linear warm-up, in optimizer steps."
    )
    final: float = Field(
        0.0,
        ge=0,
        le=1,
        description="The last learning rate of cosine, as a fraction of the peak.",
    )
    step_epochs: Epochs = Field(8, description="The number of epochs between reductions by step.")
    gamma: float = Field(0.1, gt=0, le=1, description="The factor of each reduction by step.")
    per_stage: bool = Field(
        False,
        description="Restart the schedule at each stage (when layers unfreeze). false: one "
        "schedule for the whole run.",
    )

    def check_warmup(self, steps: int, of: str = "the run") -> None:
        """Check that the warm-up ends within `steps` optimizer steps, those of the run or a stage.

        Raises:
            UserError: it does not.
        """
        if self.warmup_steps > steps:
            raise UserError(
                f"optim.schedule.warmup_steps {self.warmup_steps} is more than the {steps} steps "
                f"of {of}; set optim.schedule.warmup_steps={steps // 10}, or train longer "
                "(train.epochs, train.max_steps)"
            )


class OptimConfig(Strict):
    """The optimizer."""

    name: Literal["adam", "adamw"] = Field(
        "adamw", description="The optimizer: torch.optim's Adam or AdamW."
    )
    lr: Positive = Field(1e-4, description="The peak learning rate.")
    weight_decay: float = Field(
        1e-4,
        ge=0,
        le=1e30,
        description="The weight decay, decoupled for adamw; biases and norm layers have none.",
    )
    betas: tuple[Decay, Decay] = Field(
        (0.9, 0.999), description="The decay rates of Adam's two moment estimates."
    )
    clip_norm: Positive | None = Field(
        None, description="The norm to which larger global gradient norms are clipped. null: none."
    )
    schedule: ScheduleConfig = ScheduleConfig()


class TrainConfig(Strict):
    """The length of training, its batches, and the intervals of evaluation and logs."""

    epochs: Count = Field(10, description="The number of passes over the train split.")
    max_steps: Count | None = Field(
        None, description="Stop after this number of optimizer steps. null: train all epochs."
    )
    global_batch: Count = Field(
        64, description="The number of images per optimizer step, over all processes."
    )
    micro_batch: Count | Literal["auto"] = Field(
        "auto",
        description="The number of images per forward pass. With a number, the processes share "
        "whole micro-batches, so the result does not depend on the number of processes. auto: "
        "global_batch divided by the number of processes, on which BatchNorm and dropout then "
        "depend.",
    )
    sync_batchnorm: bool = Field(
        False,
        description="Compute BatchNorm's statistics over the whole step and all processes, at the "
        "cost of communication; needs micro_batch: auto.",
    )
    reproducible: bool = Field(
        False,
        description="Give the same bits on any number of processes, at the cost of communication; "
        "with several processes micro_batch must be a number.",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="The decay per step of an exponential moving average of the weights, which is "
        "then evaluated and exported. null: no average.",
    )
    select_from: Literal["auto", "best", "last"] = Field(
        "auto",
        description="The weights that are exported. best: those with the best validation score; "
        "last: the last ones, or their average if `ema` is set, which needs no image; auto: best "
        "from 400 validation images of each class on, or if `data.choose_with` or `early_stop` ask "
        "for a choice, else last. With few validation images the best score is mostly luck.",
    )
    early_stop: Count | None = Field(
        None,
        description="Stop after this number of evaluations without improvement. null: never.",
    )
    eval_every_epochs: Epochs = Field(
        1, description="The number of epochs between evaluations on the validation split."
    )
    eval_batch: Count = Field(
        256, description="The number of images per forward pass in evaluation."
    )
    log_every: Count = Field(
        20, description="The number of optimizer steps between rows of metrics.jsonl."
    )
    deterministic: bool = Field(
        True, description="Use torch's deterministic kernels on a GPU (on a CPU all kernels are)."
    )

    @field_validator("micro_batch", mode="before")
    @classmethod
    def _null_is_auto(cls, value: Any) -> Any:
        return "auto" if value is None else value  # null is what older configurations hold

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.micro_batch == "auto":
            return self
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"global_batch {self.global_batch} is not a whole number of "
                f"micro_batch {self.micro_batch}"
            )
        if self.sync_batchnorm:
            raise ValueError(
                f"sync_batchnorm needs micro_batch: auto, not {self.micro_batch}, because "
                "micro-batches computed in turn cannot share statistics"
            )
        return self

    def micro(self, processes: int = 1) -> int:
        """Return the images per forward pass; under `auto`, for this number of processes."""
        if self.micro_batch == "auto":
            return max(1, self.global_batch // processes)
        return self.micro_batch


class CheckpointConfig(Strict):
    """The interval of checkpoints. The best checkpoint so far is always kept as well."""

    every_epochs: Epochs = Field(
        2, description="The number of epochs between checkpoints, 2 in the recipe."
    )
    every_steps: Count | None = Field(
        None,
        description="The number of optimizer steps between checkpoints, in place of every_epochs.",
    )
    keep: Count = Field(2, description="The number of newest checkpoints to keep.")
    background: bool = Field(
        True, description="Write checkpoints in a thread while training continues."
    )


class ShardConfig(Strict):
    """The sharding of engines fsdp and deepspeed (ZeRO, arXiv:1910.02054)."""

    stage: Literal[1, 2, 3] = Field(
        3,
        description="The ZeRO stage, which decides what is sharded over the processes. 1: the "
        "optimizer state; 2: also gradients; 3: also parameters. fsdp has stages 2 and 3.",
    )
    offload: bool = Field(
        False,
        description="Keep the shard in the machine's memory and run the optimizer there; far "
        "slower, for networks that do not fit otherwise.",
    )


def strategy_name(engine: str, shard: ShardConfig) -> str:
    """Return an engine's name for logs and checkpoints: `ddp`, or `fsdp stage 3`."""
    return engine if engine == "ddp" else f"{engine} stage {shard.stage}"


class SpeedConfig(Strict):
    """The options that make a step faster or smaller, and change results by rounding at most."""

    compile: Literal["no", "whole", "blocks"] = Field(
        "no",
        description="What torch.compile compiles. whole: the network as one graph, for "
        "convolutional networks; blocks: one transformer layer, for use in all layers.",
    )
    cuda_graphs: bool = Field(
        False,
        description="Replay the compiled kernels as CUDA graphs, without the host; faster if a "
        "step has thousands of small kernels; needs compile: whole and one GPU.",
    )
    recompute: bool = Field(
        False,
        description="Keep only the inputs of transformer layers and recompute the rest in the "
        "backward pass: a third more work, a fraction of the memory (arXiv:1604.06174).",
    )
    channels_last: bool = Field(
        True,
        description="Use torch's channels-last memory format for convolutional networks (engine "
        "ddp).",
    )
    bucket_mb: Count = Field(
        100,
        description="The size in MB of the gradient buckets that are sent during the backward "
        "pass; for deepspeed also of the parameter buckets.",
    )


class CacheConfig(Strict):
    """The cache of a network's frozen part, whose outputs are computed once per stage."""

    max_gb: float = Field(
        4.0,
        ge=0,
        le=1e9,
        description="The largest size in GB of the cached outputs, per process and on the run's "
        "device. 0: no cache.",
    )


class TrackConfig(Strict):
    """The trackers besides metrics.jsonl; a tracker cannot stop or slow training."""

    wandb: Literal["auto", "online", "offline", "off"] = Field(
        "off", description="The mode of wandb. auto: online if an API key is set, else offline."
    )
    project: str | None = Field(
        None, description="The wandb project. null: the value of WANDB_PROJECT, else lensdist."
    )
    tensorboard: bool = Field(
        False, description="Write TensorBoard files; needs the extra lensdist[tensorboard]."
    )


class RunConfig(Strict):
    """The location of a run."""

    dir: Path = Field(description="The folder of the run, which is created.")
