"""Do slow preprocessing once, before training, and not at every step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lensdist.data.dataset import Batch
from lensdist.data.masks import good_pixels
from lensdist.data.sampler import Images
from lensdist.data.transforms import Preprocess
from lensdist.distributed.context import DistributedContext
from lensdist.training.map_dataset import for_every_image

_COLUMN = "column."  # prefix of columns among the entries of a batch


class PreparedView:
    """A view whose batches hold `seen`, the network's input, in place of `image`.

    Args:
        view: the unprocessed images.
        preprocess: applied to them.
        batch: images at a time.
        world: the processes, which share the work.

    Attributes:
        columns: (N,) what `Preprocess.examine` measured in the images, by name.
    """

    def __init__(
        self, view: Images, preprocess: Preprocess, batch: int, world: DistributedContext
    ) -> None:
        self._view = view
        self._whole = for_every_image(view, batch, world, lambda images: _seen(images, preprocess))
        self.columns = {name: self._whole.pop(_COLUMN + name) for name in preprocess.columns}

    def __len__(self) -> int:
        return len(self._whole["sample"])

    def name_of(self, sample: int) -> str:
        """See `View.name_of`."""
        return self._view.name_of(sample)

    def gather(self, places: npt.NDArray[np.int64]) -> Batch:
        """Return the images at these places of the split."""
        where = torch.from_numpy(places).to(self._whole["seen"].device)
        return {name: value[where] for name, value in self._whole.items()}


def measured(
    view: Images, preprocess: Preprocess, batch: int, world: DistributedContext
) -> dict[str, Tensor]:
    """Return the columns (N,) that `Preprocess.examine` measures in the images of a view."""

    def columns(images: Batch) -> Batch:
        return preprocess.examine(images["image"], good_pixels(images)).columns

    return for_every_image(view, batch, world, columns)


def _seen(images: Batch, preprocess: Preprocess) -> Batch:
    batch = {name: value for name, value in images.items() if value.dim() == 1}
    found = preprocess.examine(images["image"])
    columns = {_COLUMN + name: value for name, value in found.columns.items()}
    return {**batch, **columns, "seen": found.seen}
