"""How an optimizer step's images are shared out (torch-free arithmetic).

A step is a fixed list of micro-batches. Each process takes a run of whole ones, so what a
micro-batch holds, and the random numbers drawn for it, never depend on the number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass

from lensdist.errors import UserError


@dataclass(frozen=True)
class StepPlan:
    """The micro-batches of every step.

    Attributes:
        micro_batch: images in one.
        count: how many make a step, over all processes.
        mine: numbers of those that this process computes.
        steps_per_epoch: whole steps in an epoch; the last, short batch is dropped.
    """

    micro_batch: int
    count: int
    mine: range
    steps_per_epoch: int

    def place(self, step: int, micro: int) -> tuple[int, int]:
        """Epoch, and offset in its order of samples, of a step's micro-batch."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch, (within * self.count + micro) * self.micro_batch


def plan_steps(global_batch: int, micro_batch: int, samples: int, rank: int, size: int) -> StepPlan:
    """Share the micro-batches of a step out over processes.

    Raises:
        UserError: they do not divide evenly, or an epoch is shorter than one step.
    """
    count = global_batch // micro_batch
    if count % size:
        raise UserError(
            f"train.global_batch {global_batch} makes {count} micro-batches of {micro_batch}, "
            f"which {size} processes cannot share evenly; set train.micro_batch to "
            f"{_advice(global_batch, size)}"
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
    if global_batch % size == 0:
        return f"{global_batch // size} or a divisor of it"
    return f"a number that divides it into a multiple of {size}, after making it divisible"
