"""Share the images of an optimizer step among processes (torch-free arithmetic).

A step is a fixed list of micro-batches, of which each process takes a contiguous range. If
`train.micro_batch` is a number, a micro-batch's content, and the random numbers drawn for it, do
not depend on the number of processes. Under `auto` each process has one micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lensdist.distributed.config import TrainConfig
from lensdist.utils.errors import UserError


@dataclass(frozen=True)
class StepPlan:
    """The micro-batches of every step.

    Attributes:
        micro_batch: images in one.
        count: micro-batches of a step, over all processes.
        mine: numbers of those that this process computes.
        steps_per_epoch: whole steps in an epoch; the last, short batch is dropped.
    """

    micro_batch: int
    count: int
    mine: range
    steps_per_epoch: int

    def place(self, step: int, micro: int) -> tuple[int, int]:
        """Return the epoch, and the offset in its order of samples, of a step's micro-batch."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch, (within * self.count + micro) * self.micro_batch


def check_shares(train: TrainConfig, fewest: int, size: int) -> None:
    """Check that `size` processes can share a run's steps.

    Args:
        train: the run's batches.
        fewest: images that a micro-batch needs.
        size: number of processes.

    Raises:
        UserError: they cannot; the message names the settings to change.
    """
    plan = plan_steps(train.global_batch, train.micro_batch, train.global_batch, 0, size)
    if plan.micro_batch < fewest:
        raise UserError(
            f"train.global_batch {train.global_batch} on {size} processes makes micro-batches of "
            f"{plan.micro_batch}, and the head's BatchNorm needs {fewest} images or more; set "
            f"train.global_batch to {fewest * size}, or train.sync_batchnorm=true"
        )
    if train.reproducible and train.micro_batch == "auto" and size > 1:
        raise UserError(
            "train.reproducible gives the same bits on any number of processes, but "
            "train.micro_batch: auto depends on their number; set train.micro_batch to "
            f"{plan.micro_batch}, or to a divisor of it"
        )


def plan_steps(
    global_batch: int, micro_batch: int | Literal["auto"], samples: int, rank: int, size: int
) -> StepPlan:
    """Assign the micro-batches of a step to processes.

    Raises:
        UserError: they do not divide evenly, or an epoch is shorter than one step.
    """
    if micro_batch == "auto":
        if global_batch % size:
            raise UserError(
                f"train.global_batch {global_batch} cannot be shared evenly by {size} processes; "
                f"{_divisible(global_batch, size)}, or start another number of processes"
            )
        micro_batch = global_batch // size
    count = global_batch // micro_batch
    if count % size:
        raise UserError(
            f"train.global_batch {global_batch} makes {count} micro-batches of {micro_batch}, "
            f"which {size} processes cannot share evenly; {_advice(global_batch, size)}"
        )
    if samples < global_batch:
        raise UserError(
            f"train.global_batch {global_batch} is more than the {samples} training images; "
            f"lower it to {samples} or less"
        )
    share = count // size
    return StepPlan(
        micro_batch, count, range(rank * share, (rank + 1) * share), samples // global_batch
    )


def _advice(global_batch: int, size: int) -> str:
    if global_batch % size:
        return f"{_divisible(global_batch, size)}, and train.micro_batch to auto"
    return f"set train.micro_batch to {global_batch // size}, a divisor of it, or auto"


def _divisible(global_batch: int, size: int) -> str:
    below = global_batch - global_batch % size
    return f"set train.global_batch to {f'{below} or ' if below else ''}{below + size}"
