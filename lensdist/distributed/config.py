"""Settings of the training loop (torch-free)."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lensdist.utils.settings import Count, Epochs, Positive, Strict

Decay = Annotated[float, Field(ge=0, lt=1)]


class ScheduleConfig(Strict):
    """Learning rate as a function of the optimizer step."""

    kind: Literal["constant", "cosine", "step"] = Field(
        "constant", description="cosine: to `final` over the stage; step: x gamma every step_epochs"
    )
    warmup_steps: int = Field(
        0, ge=0, le=10**12, description="linear warm-up from 0, in optimizer steps"
    )
    final: float = Field(0.0, ge=0, le=1, description="cosine's last learning rate, as a share")
    step_epochs: Epochs = Field(8, description="StepLR's step size, in epochs")
    gamma: float = Field(0.1, gt=0, le=1, description="StepLR's factor")
    per_stage: bool = Field(
        False, description="start again at each stage (when layers unfreeze); else one curve"
    )


class OptimConfig(Strict):
    """The optimizer."""

    name: Literal["adam", "adamw"] = Field("adamw", description="torch.optim's Adam or AdamW")
    lr: Positive = Field(1e-4, description="peak learning rate")
    weight_decay: float = Field(
        1e-4, ge=0, le=1e30, description="decoupled for adamw; not on biases, norms"
    )
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="Adam's moment decays")
    clip_norm: Positive | None = Field(None, description="clip the global gradient norm")
    schedule: ScheduleConfig = ScheduleConfig()


class TrainConfig(Strict):
    """How long, in what batches, and when to look."""

    epochs: Count = Field(10, description="passes over the train split")
    max_steps: Count | None = Field(None, description="stop after this many optimizer steps")
    global_batch: Count = Field(64, description="images per optimizer step, over all processes")
    micro_batch: Count | Literal["auto"] = Field(
        "auto",
        description="images per forward pass. A number: whatever the number of processes, which "
        "share whole micro-batches, so that the result does not depend on it. auto: global_batch "
        "over the number of processes; BatchNorm and dropout depend on it then",
    )
    sync_batchnorm: bool = Field(
        False,
        description="BatchNorm normalises by the whole step, over all processes, for more "
        "communication (goes with micro_batch: auto)",
    )
    reproducible: bool = Field(
        False,
        description="the same bits on any number of processes, for more communication; several "
        "need a number for micro_batch",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of an exponential moving average of the weights, "
        "which is then what is evaluated and exported",
    )
    early_stop: Count | None = Field(
        None, description="stop after this many evaluations without improvement"
    )
    eval_every_epochs: Epochs = Field(1, description="evaluate on the validation split")
    eval_batch: Count = Field(256, description="images per forward pass in evaluation")
    log_every: Count = Field(20, description="optimizer steps between rows of metrics.jsonl")
    deterministic: bool = Field(
        True, description="torch's deterministic kernels on a GPU (a CPU's always are)"
    )

    @field_validator("micro_batch", mode="before")
    @classmethod
    def _null_is_auto(cls, value: Any) -> Any:
        return "auto" if value is None else value  # configurations were saved so before `auto`

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
                f"sync_batchnorm goes with micro_batch: auto, not {self.micro_batch}: what one "
                "process computes in turn cannot know the statistics of what comes later"
            )
        return self

    def micro(self, processes: int = 1) -> int:
        """Images per forward pass; under `auto`, of a step that so many processes share."""
        if self.micro_batch == "auto":
            return max(1, self.global_batch // processes)
        return self.micro_batch


class CheckpointConfig(Strict):
    """When the state of the run is saved. The best so far is always kept besides."""

    every_epochs: Epochs = Field(2, description="the recipe saves every 2 epochs")
    every_steps: Count | None = Field(None, description="in optimizer steps instead")
    keep: Count = Field(2, description="how many of the newest to keep")
    background: bool = Field(True, description="write in a thread while training goes on")


class ShardConfig(Strict):
    """What engines fsdp and deepspeed divide among the processes (ZeRO, arXiv:1910.02054)."""

    stage: Literal[1, 2, 3] = Field(
        3,
        description="1: the optimizer's state; 2: and gradients; 3: and parameters. fsdp knows 2 "
        "and 3; what is not divided is held, and moved, whole",
    )
    offload: bool = Field(
        False,
        description="keep the process's share in the machine's memory, and step there; far slower, "
        "for networks that fit no other way",
    )


def strategy_name(engine: str, shard: ShardConfig) -> str:
    """Return an engine's name as logs and checkpoints have it: `ddp`, or `fsdp stage 3`."""
    return engine if engine == "ddp" else f"{engine} stage {shard.stage}"


class SpeedConfig(Strict):
    """What makes a step faster or smaller, and changes what it computes by rounding at most."""

    compile: Literal["no", "whole", "blocks"] = Field(
        "no",
        description="torch.compile: whole, the network as one graph, for convolutional ones; "
        "blocks, each transformer layer, compiled once for all of them",
    )
    cuda_graphs: bool = Field(
        False,
        description="replay the compiled kernels without the host (goes with compile: whole, one "
        "GPU); pays where a step is thousands of small kernels",
    )
    recompute: bool = Field(
        False,
        description="keep only the inputs of transformer layers, and compute the rest again in the "
        "backward pass: a third more work for a fraction of the memory (arXiv:1604.06174)",
    )
    channels_last: bool = Field(
        True,
        description="convolutional networks: pixels' channels beside each other in memory (ddp)",
    )
    bucket_mb: Count = Field(
        100,
        description="gradients travel in pieces of this size while the rest of the backward pass "
        "goes on; under deepspeed, parameters too",
    )


class CacheConfig(Strict):
    """Outputs of a network's frozen part, computed once a stage in place of once an epoch."""

    max_gb: float = Field(
        4.0, ge=0, le=1e9, description="memory for them, on the run's device, per process; 0: never"
    )


class TrackConfig(Strict):
    """Trackers beside metrics.jsonl; none of them can stop or slow training."""

    wandb: Literal["auto", "online", "offline", "off"] = Field(
        "off", description="auto: online when an API key is set, else offline"
    )
    project: str | None = Field(
        None, description="wandb project; null: what WANDB_PROJECT says, else lensdist"
    )
    tensorboard: bool = Field(False, description="needs the extra lensdist[tensorboard]")


class RunConfig(Strict):
    """Where a run lives."""

    dir: Path = Field(description="folder of the run; created")
