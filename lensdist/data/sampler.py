"""What the loop eats: micro-batches by position, never by iterator.

A source answers `take(epoch, offset, n)`. The order of an epoch is a permutation by (seed, epoch),
so a position is two integers, and a resumed run has nothing of a loader to restore.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from lensdist import rng
from lensdist.data.dataset import Batch


class Source(Protocol):
    """Training images: `size` an epoch."""

    size: int

    def take(self, epoch: int, offset: int, n: int) -> Batch:
        """Images `offset … offset+n-1` of an epoch, as tensors on the device of the run.

        `image` (n, C, H, W), `label` (n,) int64, `sample` (n,) int64, a number that is the
        sample's own for ever, and `target`, `truth`, `mass`, `badpix`, `weight` where the data has
        them.
        """
        ...

    def name_of(self, sample: int) -> str:
        """What a sample is, for a sentence."""
        ...


class Images(Protocol):
    """The images of a split, by their places in it."""

    def __len__(self) -> int: ...

    def gather(self, places: npt.NDArray[np.int64]) -> Batch:
        """The images at these places, as `Source.take` returns them."""
        ...

    def name_of(self, sample: int) -> str:
        """What a sample is, for a sentence."""
        ...


class PackedSource:
    """Training images of a packed set.

    Args:
        view: the images.
        seed: of the order of each epoch.
    """

    def __init__(self, view: Images, seed: int) -> None:
        self.size = len(view)
        self.view = view
        self._seed = seed
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def take(self, epoch: int, offset: int, n: int) -> Batch:
        """See `Source.take`."""
        return self.view.gather(self.places(epoch, offset, n))

    def name_of(self, sample: int) -> str:
        """See `View.name_of`."""
        return self.view.name_of(sample)

    def places(self, epoch: int, offset: int, n: int) -> npt.NDArray[np.int64]:
        """Where in `view` the images lie that `take` returns."""
        if epoch != self._epoch:
            self._order = rng.permutation(rng.key(self._seed, "order", epoch), self.size)
            self._epoch = epoch
        return self._order[offset : offset + n]
