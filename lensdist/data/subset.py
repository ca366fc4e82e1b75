"""What the loop eats: micro-batches by position, never by iterator.

A source answers `take(epoch, offset, n)`. The order of an epoch is a permutation by (seed, epoch),
so a position is two integers, and a resumed run has nothing of a loader to restore.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lensdist import rng
from lensdist.data.config import DataConfig
from lensdist.data.dataset import PackedSet
from lensdist.errors import UserError
from lensdist.sim.config import SimConfig
from lensdist.sim.families import FAMILIES

Batch = dict[str, Tensor]


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


class View:
    """One split of a packed set, some of its classes, on a device.

    Args:
        packed: the set.
        split: `train`, `val` or `test`.
        cfg: `classes`, `labels_per_class` and `train_images` choose among the split's images (the
            latter two in `train` only, so that small runs are compared on the same test images).
        seed: draws the subset to train on.
        device: where batches go.
        lenient: `classes` may name some that the set has not.

    Raises:
        UserError: a class that the set has not, or fewer images than asked for.
    """

    def __init__(
        self,
        packed: PackedSet,
        split: str,
        cfg: DataConfig,
        seed: int,
        device: torch.device,
        lenient: bool = False,
    ) -> None:
        self.labels = cfg.classes or tuple(packed.manifest.labels)
        unknown = [c for c in self.labels if c not in packed.manifest.labels]
        if unknown and not lenient:
            raise UserError(
                f"data.classes: {packed.path} has no class {unknown[0]!r}; "
                f"it has {', '.join(packed.manifest.labels) or 'no labels'}; set data.classes=null "
                "for all images, or name some of its classes"
            )
        rows = packed.indices(split)
        renumber = np.full(len(packed.manifest.labels) + 1, -1, np.int64)  # [-1] = unlabelled
        for new, name in enumerate(self.labels):
            if name not in unknown:
                renumber[packed.manifest.labels.index(name)] = new
        of_rows = renumber[np.asarray(packed.labels)[rows]]
        self.unlabelled = int((of_rows < 0).sum()) if cfg.classes is None else 0
        """Images without a label, or of none of the run's classes."""
        if cfg.classes is not None:
            rows, of_rows = rows[of_rows >= 0], of_rows[of_rows >= 0]
        if cfg.labels_per_class is not None and split == "train":
            if not self.labels:
                raise UserError(
                    f"data.labels_per_class: {packed.path} has no classes; use data.train_images"
                )
            rows = _few(rows, of_rows, self.labels, cfg.labels_per_class, seed)
        if not len(rows):
            of = f" of {', '.join(self.labels)}" if self.labels else ""
            raise UserError(f"{packed.path} has no {split} images{of}")
        if cfg.train_images is not None and split == "train":
            rows = _some(rows, cfg.train_images, seed)
        self.rows = rows
        self._renumber = torch.from_numpy(renumber)
        self._device = device
        self._packed = packed
        keep = cfg.resident == "yes" or (cfg.resident == "auto" and _fits(packed, device))
        self._gather = (packed.resident(device) if keep else packed).gather
        self._renumber_resident = self._renumber.to(device) if keep else self._renumber

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, places: npt.NDArray[np.int64]) -> Batch:
        """The images at these places of the split, on the device.

        Raises:
            RunError: the set was found damaged meanwhile.
        """
        self._packed.verification.check()
        rows = self.rows[places]
        batch = self._gather(rows)
        batch["label"] = self._renumber_resident[batch["label"]]
        batch["sample"] = torch.from_numpy(rows)
        return {k: v.to(self._device, non_blocking=True) for k, v in batch.items()}

    def name_of(self, sample: int) -> str:
        """The set, and what a sample of it was made of."""
        return f"{self._packed.path}: {self._packed.name_of(sample)}"


def _few(
    rows: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    names: tuple[str, ...],
    n: int,
    seed: int,
) -> npt.NDArray[np.int64]:
    """The first n of each class in one seeded order, so a larger n contains a smaller one."""
    chosen = []
    for number, name in enumerate(names):
        of_class = rows[labels == number]
        if len(of_class) < n:
            raise UserError(
                f"data.labels_per_class: {n} asked for, but the train split has "
                f"{len(of_class)} images of {name}"
            )
        chosen.append(of_class[rng.permutation(rng.key(seed, "labels", number), len(of_class))[:n]])
    return np.sort(np.concatenate(chosen))


def _some(rows: npt.NDArray[np.int64], n: int, seed: int) -> npt.NDArray[np.int64]:
    """The first n in one seeded order, so a larger n contains a smaller one."""
    if len(rows) < n:
        raise UserError(
            f"data.train_images: {n} asked for, but the train split has {len(rows)} images"
        )
    return np.sort(rows[rng.permutation(rng.key(seed, "images"), len(rows))[:n]])


def _fits(packed: PackedSet, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return packed.nbytes < 0.4 * free


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


class StreamSource:
    """Training images simulated on the device of the run as they are needed, never repeating.

    Args:
        sim: what to simulate.
        size: images that count as an epoch.
        labels: the run's classes, in the order of its labels.
        seed: every image is a function of it and of the image's number.
        device: where to simulate.
    """

    def __init__(
        self, sim: SimConfig, size: int, labels: tuple[str, ...], seed: int, device: torch.device
    ) -> None:
        from lensdist.sim.simulator import Simulator

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
        """See `View.name_of`."""
        return f"simulated sample {sample}"
