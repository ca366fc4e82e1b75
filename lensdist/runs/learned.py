"""Learn from images, when a run ends, what its exported network needs besides weights.

One process does it, in batches that are always the same, so neither the number of processes nor a
resumed run changes the result.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from lensdist.data.dataset import Batch
from lensdist.data.sampler import PackedSource
from lensdist.export.likeness import IMAGES, Likeness, fit, some
from lensdist.training.stages import Phase


@torch.no_grad()
def learn(phase: Phase, model: nn.Module) -> Likeness | None:
    """Let the task settle what its predictions need, and learn what its images are like.

    Args:
        phase: what was trained.
        model: the network with the weights to export.

    Returns:
        None if the task does not compare images, or has too few of them.
    """
    task, held = phase.task, phase.validation
    weights = {k: v.float() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    with torch.device("meta"):  # a network that is neither compiled, wrapped nor in 8 bits
        network = task.skeleton(weights)
    network.load_state_dict(weights, assign=True)
    network.eval()
    device = next(iter(weights.values())).device

    def outputs(network: nn.Module, batch: Batch) -> Batch:
        return task.outputs(network, {name: value.to(device) for name, value in batch.items()})

    def of_all() -> Batch:
        each = [outputs(network, held.gather(at)) for at in some(len(held), len(held))]
        return {name: torch.cat([one[name] for one in each]) for name in each[0]}

    data = phase.cfg.data
    if not (data.limited and data.choose_with == 0):  # else labels beyond the number would decide
        task.settle(of_all)
    layers = task.compared(network)
    if layers is None:
        return None
    val = map(held.gather, some(len(held)))
    if not layers:  # only the network's input counts
        return fit((), nn.Identity(), lambda same, b: same(task.image(b)), _train(phase), val)
    return fit(layers, network, outputs, _train(phase), val)


def _train(phase: Phase) -> Iterator[Batch]:
    """Yield some training images."""
    source = phase.source
    if isinstance(source, PackedSource):
        yield from map(source.view.gather, some(source.size))
    else:  # a stream, of which these are the first
        for at in some(min(source.size, IMAGES)):
            yield source.take(0, int(np.min(at)), len(at))
