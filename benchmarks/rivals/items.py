"""Read images of a packed set as others do: one by one, from files or from the array."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.rivals.loops import Batch
from lensdist.data.dataset import PackedSet

Item = Callable[[dict[str, Tensor]], Batch]
"""Maps one sample's tensors, without the batch axis, to the items of a loader."""

_IMAGES: tuple[str, ...] = ("image", "target")


class Files(Dataset[Batch]):
    """Samples by number, each from its own `.npy` files, as a notebook reads them.

    Args:
        packed: the set.
        folder: of the files, written there once.
        rows: the samples that will be read.
        item: applied to each sample.
    """

    def __init__(self, packed: PackedSet, folder: Path, rows: Sequence[int], item: Item) -> None:
        self._folder, self._item, self._labels = folder, item, packed.labels
        one = packed.gather(np.asarray(rows[:1]))
        self._keys = [key for key in _IMAGES if key in one]
        folder.mkdir(parents=True, exist_ok=True)
        for row in rows:
            if not self._file("image", row).exists():
                one = packed.gather(np.asarray([row]), dtype=None)
                for key in reversed(self._keys):  # the image comes last: it shows that all exist
                    # Users' files are float64: `lensdist simulate` writes them so.
                    np.save(self._file(key, row), one[key][0].double().numpy())

    def _file(self, key: str, row: int) -> Path:
        return self._folder / f"{key}-{row}.npy"

    def __getitem__(self, row: int) -> Batch:
        sample = {
            key: torch.from_numpy(np.load(self._file(key, row)).astype(np.float32))
            for key in self._keys
        }
        return self._item(sample | _numbers(row, self._labels[row]))


class Array(Dataset[Batch]):
    """Samples by number, copied one by one out of the packed array."""

    def __init__(self, packed: PackedSet, item: Item) -> None:
        self._packed, self._item = packed, item

    def __getitem__(self, row: int) -> Batch:
        one = self._packed.gather(np.asarray([row]))
        sample = {key: one[key][0] for key in _IMAGES if key in one}
        return self._item(sample | _numbers(row, self._packed.labels[row]))


class Memory:
    """Whole batches from tensors on the device: the least that a loader can cost.

    Args:
        packed: the set.
        device: where the tensors are kept.
        batch: samples at a time.
        rows: the samples, by number.
        shuffle: whether each epoch has an order of its own.
        keys: of a batch, in order.
    """

    def __init__(
        self, packed: PackedSet, device: torch.device, batch: int, rows: Sequence[int],
        shuffle: bool, keys: tuple[str, ...],
    ) -> None:  # fmt: skip
        whole = packed.gather(np.asarray(rows))
        whole["sample"] = torch.as_tensor(rows)
        self._tensors = tuple(whole[key].to(device) for key in keys)
        self._batch, self._shuffle = batch, shuffle

    def __iter__(self) -> Iterator[Batch]:
        first = self._tensors[0]
        draw = torch.randperm if self._shuffle else torch.arange
        order = draw(len(first), device=first.device)
        for rows in torch.split(order, self._batch):
            if len(rows) == self._batch:
                yield tuple(tensor[rows] for tensor in self._tensors)


def _numbers(row: int, label: int) -> dict[str, Tensor]:
    return {"label": torch.tensor(int(label)), "sample": torch.tensor(int(row))}
