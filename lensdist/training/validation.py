"""Evaluate exactly the samples of a split, for any number of processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lensdist.data.sampler import Images
from lensdist.distributed.context import DistributedContext
from lensdist.tasks.registry import AnyTask
from lensdist.training.nonfinite import find_nonfinite

Outputs = dict[str, Tensor]


@torch.no_grad()
def outputs_of(
    task: AnyTask, model: nn.Module, view: Images, batch: int, world: DistributedContext
) -> Outputs:
    """Return the task's outputs for every sample of a split, in its order, on every process.

    Batches do not depend on the number of processes, which take turns. Each sends equally many
    rows; those of the padding are dropped again.

    Raises:
        RunError: a sample, or the input made from it, is not finite.
    """
    batch = min(batch, len(view))
    starts = range(0, len(view), batch)
    rounds = -(-len(starts) // world.size)
    padded = rounds * batch
    collected: dict[str, list[Tensor]] = {}
    places = np.full(padded, -1, np.int64)
    done = 0
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    # Every process calls the network equally often, since its shards may be spread over all of
    # them. One without a batch in the last round repeats another.
    for turn in range(world.rank, rounds * world.size, world.size):
        start = starts[turn] if turn < len(starts) else starts[0]
        rows = np.arange(start, min(start + batch, len(view)))
        with world.accelerator.autocast():
            found = task.outputs(model, view.gather(rows))
        if turn < len(starts):
            places[done : done + len(rows)] = rows
        done += len(rows)
        for name, value in found.items():
            collected.setdefault(name, []).append(value)
    for module, training in modes:  # one by one: frozen parts were in eval mode before
        module.training = training
    where = world.gather(torch.from_numpy(places).to(world.device))
    keep = where >= 0
    order = where[keep].argsort()
    result = {}
    for name, values in collected.items():
        value = torch.cat(values)
        full = value.new_zeros(padded, *value.shape[1:])
        full[: len(value)] = value
        result[name] = world.gather(full)[keep][order].cpu()
    odd = torch.zeros(len(view), dtype=torch.bool)
    for name, value in result.items():
        if value.is_floating_point() and name not in task.incomplete:
            odd |= ~value.flatten(1).isfinite().all(1) if value.dim() > 1 else ~value.isfinite()
    if odd.any():
        some = view.gather(np.flatnonzero(odd.numpy())[:batch])
        find_nonfinite(view, [some], task.preprocess)
    return result


def evaluate(
    task: AnyTask, model: nn.Module, view: Images, batch: int, world: DistributedContext
) -> dict[str, Any]:
    """Return the main process's scores on a split; the last bits of others may differ."""
    return world.from_main(task.score(outputs_of(task, model, view, batch, world)))
