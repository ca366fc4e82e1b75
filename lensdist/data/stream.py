"""Simulate training images as they are needed."""

from __future__ import annotations

import torch

from lensdist.data.dataset import Batch
from lensdist.sim.config import SimConfig
from lensdist.sim.families import FAMILIES
from lensdist.sim.simulator import Simulator
from lensdist.utils import rng
from lensdist.utils.errors import UserError


class StreamSource:
    """Training images that are simulated on the device of the run and never repeat.

    Args:
        sim: the settings of the simulator.
        size: images that count as an epoch.
        labels: the run's classes, in the order of its labels; empty for pairs.
        seed: every image is a function of it and of the image's number.
        device: the device to simulate on.

    Raises:
        UserError: the family does not have one of the classes.
    """

    def __init__(
        self, sim: SimConfig, size: int, labels: tuple[str, ...], seed: int, device: torch.device
    ) -> None:
        self.size = size
        self._device = device
        self._key = rng.key(seed, "stream")
        unknown = sorted(set(labels) - set(FAMILIES[sim.family].labels))
        if unknown:
            raise UserError(
                f"data.sim: {sim.family} does not simulate {unknown[0]!r}; name classes that it "
                "does in data.classes"
            )
        if labels:
            sim = sim.model_copy(update={"classes": labels})
        self._simulator = Simulator(sim, device)
        # The simulator numbers classes in its family's order, the run in its own; a run on pairs
        # knows no classes.
        order = [labels.index(name) if labels else -1 for name in self._simulator.labels]
        self._renumber = torch.tensor(order, device=device)

    def take(self, epoch: int, offset: int, n: int) -> Batch:
        """See `Source.take`."""
        first = epoch * self.size + offset
        samples = torch.arange(first, first + n, device=self._device)
        batch = self._simulator.batch(self._key, samples)
        batch["label"] = self._renumber[batch["label"]]
        return batch

    def name_of(self, sample: int) -> str:
        """See `Source.name_of`."""
        return f"simulated sample {sample}"
