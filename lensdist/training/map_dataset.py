"""Compute something once for every image of a view, sharing the work among all processes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from lensdist.data.dataset import Batch
from lensdist.data.sampler import Images
from lensdist.distributed.context import DistributedContext


@torch.no_grad()
def for_every_image(
    images: Images, batch: int, world: DistributedContext, compute: Callable[[Batch], Batch]
) -> Batch:
    """Return the outputs of `compute` for all images, in order, on every process.

    Batches are the same, in the same order and all full (the last is padded with its last image)
    for any number of processes, so the results are bitwise equal, also in a resumed run.

    Args:
        images: a view.
        batch: images at a time.
        world: the processes, which take turns.
        compute: maps a batch to tensors by name (B, …) that depend on each image alone.

    Returns:
        Tensors by the same names (N, …), on the device where they were computed.
    """
    n = len(images)
    batch = min(batch, n)
    whole: Batch = {}
    for start in range(0, n, batch * world.size):
        mine = start + world.rank * batch
        places = np.minimum(np.arange(mine, mine + batch), n - 1)
        count = min(batch * world.size, n - start)
        for name, part in compute(images.gather(places)).items():
            if name not in whole:
                whole[name] = part.new_empty(n, *part.shape[1:])
            whole[name][start : start + count] = world.gather(part.contiguous())[:count]
    return whole
