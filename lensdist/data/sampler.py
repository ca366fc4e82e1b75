"""Take training batches by position.

A source answers `take(epoch, offset, n)`. The order of an epoch is a permutation by (seed, epoch),
so a position is two integers, and a resumed run has no state of a loader to restore.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from lensdist.data.dataset import Batch
from lensdist.utils import rng


class Source(Protocol):
    """Training images, `size` of them per epoch."""

    size: int

    def take(self, epoch: int, offset: int, n: int) -> Batch:
        """Return images `offset … offset+n-1` of an epoch, as tensors on the device of the run.

        `image` (n, C, H, W), `label` (n,) int64, `sample` (n,) int64, a number that always means
        the same sample, and `target`, `truth`, `mass`, `badpix`, `weight` where the data has them.
        """
        ...

    def name_of(self, sample: int) -> str:
        """Name a sample, for a message."""
        ...


class Images(Protocol):
    """The images of a split, by their places in it."""

    def __len__(self) -> int: ...

    def gather(self, places: npt.NDArray[np.int64]) -> Batch:
        """Return the images at these places, as `Source.take` does."""
        ...

    def name_of(self, sample: int) -> str:
        """Name a sample, for a message."""
        ...


class PackedSource:
    """Training images of a packed set.

    Args:
        view: the images.
        seed: seed of the order of each epoch.
        classes: (N,) the class of each image, all of which then come equally often; None: each
            image comes once an epoch.
    """

    def __init__(
        self, view: Images, seed: int, classes: npt.NDArray[np.int64] | None = None
    ) -> None:
        self.size = len(view)
        self.view = view
        self.classes = classes
        self._seed = seed
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def take(self, epoch: int, offset: int, n: int) -> Batch:
        """See `Source.take`."""
        return self.view.gather(self.places(epoch, offset, n))

    def name_of(self, sample: int) -> str:
        """See `Source.name_of`."""
        return self.view.name_of(sample)

    def places(self, epoch: int, offset: int, n: int) -> npt.NDArray[np.int64]:
        """Return the places in `view` of the images that `take` returns."""
        if epoch != self._epoch:
            self._order = rng.permutation(rng.key(self._seed, "order", epoch), self.size)
            if self.classes is not None:
                self._order = balanced(self.classes, self._seed, epoch)[self._order]
            self._epoch = epoch
        return self._order[offset : offset + n]


def balanced(classes: npt.NDArray[np.int64], seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return as many places as there are images, of each class equally many (or one more).

    The images of a class come in one endless order, of which each epoch takes the next part, so
    that none comes again before all others of its class have come.

    Args:
        classes: (N,) the class of each image.
        seed: seed of the orders.
        epoch: the number of the epoch, from 0.
    """
    kinds, total = np.unique(classes), len(classes)
    found = []
    for k, kind in enumerate(kinds):
        places = np.flatnonzero(classes == kind)
        count = total * (k + 1) // len(kinds) - total * k // len(kinds)
        wanted = np.arange(epoch * count, (epoch + 1) * count)
        turn, at = np.divmod(wanted, len(places))
        for cycle in np.unique(turn):
            order = rng.permutation(rng.key(seed, "balance", int(kind), int(cycle)), len(places))
            found.append(places[order[at[turn == cycle]]])
    return np.concatenate(found)
