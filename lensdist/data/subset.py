"""Choose images of one split of a packed set, and gather them on a device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from lensdist.data.config import DataConfig
from lensdist.data.dataset import Batch, PackedSet
from lensdist.utils import rng
from lensdist.utils.errors import UserError


class View:
    """Some images of one split of a packed set, on a device.

    Args:
        packed: the set.
        split: `train`, `val`, `test` or `all`.
        cfg: `classes`, `labels_per_class` and `train_images` choose among the split's images. The
            latter two apply to `train`, and to `val` if `choose_with` is a number of them. They
            never apply to `test`, so that small runs have the same test images.
        seed: draws the subset.
        device: the device of batches.
        lenient: `classes` may name some that the set does not have.
        renamed: what classes of the set are called in `classes`.

    Raises:
        UserError: the set lacks a class, or has fewer images than asked for.
    """

    def __init__(
        self,
        packed: PackedSet,
        split: str,
        cfg: DataConfig,
        seed: int,
        device: torch.device,
        lenient: bool = False,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        theirs = [(renamed or {}).get(name, name) for name in packed.manifest.labels]
        self.labels = cfg.classes or tuple(theirs)
        unknown = [c for c in self.labels if c not in theirs]
        if unknown and not lenient:
            raise UserError(
                f"data.classes: {packed.path} has no class {unknown[0]!r}; "
                f"it has {', '.join(packed.manifest.labels) or 'no labels'}; set data.classes=null "
                "for all images, or name some of its classes"
            )
        rows = packed.indices(split)
        renumber = np.full(len(theirs) + 1, -1, np.int64)  # [-1] = unlabelled
        for old, name in enumerate(theirs):
            if name in self.labels:
                renumber[old] = self.labels.index(name)
        of_rows = renumber[np.asarray(packed.labels)[rows]]
        self.unlabelled = int((of_rows < 0).sum()) if cfg.classes is None else 0
        """Number of images without a label, or of none of the run's classes."""
        if cfg.classes is not None:
            rows, of_rows = rows[of_rows >= 0], of_rows[of_rows >= 0]
        wanted = cfg.labels_per_class or cfg.train_images or 0
        wanted = {"train": wanted - cfg.held_back, "val": cfg.held_back}.get(split, 0)
        if cfg.labels_per_class is not None and wanted:
            if not self.labels:
                raise UserError(
                    f"data.labels_per_class: {packed.path} has no classes; use data.train_images"
                )
            rows = _few(rows, of_rows, self.labels, wanted, split, seed)
        if not len(rows):
            of = f" of {', '.join(self.labels)}" if self.labels else ""
            raise UserError(f"{packed.path} has no {split} images{of}")
        if cfg.train_images is not None and wanted:
            rows = _some(rows, wanted, split, seed)
        self.rows = rows
        self.classes: npt.NDArray[np.int64] = renumber[np.asarray(packed.labels)[rows]]
        """(N,) the class of each image, in the run's numbers; -1: none of them."""
        self._renumber = torch.from_numpy(renumber)
        self._device = device
        self._packed = packed
        keep = cfg.resident == "yes" or (cfg.resident == "auto" and _fits(packed, device))
        self._gather = (packed.resident(device) if keep else packed).gather
        self._renumber_resident = self._renumber.to(device) if keep else self._renumber

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, places: npt.NDArray[np.int64]) -> Batch:
        """Gather the images at these places of the split.

        Raises:
            RunError: the set was found to be damaged in the meantime.
        """
        self._packed.verification.check()
        rows = self.rows[places]
        batch = self._gather(rows)
        batch["label"] = self._renumber_resident[batch["label"]]
        batch["sample"] = torch.from_numpy(rows)
        return {k: v.to(self._device, non_blocking=True) for k, v in batch.items()}

    def name_of(self, sample: int) -> str:
        """Name the set and the sample; see `PackedSet.name_of`."""
        return f"{self._packed.path}: {self._packed.name_of(sample)}"


def _few(
    rows: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    names: tuple[str, ...],
    n: int,
    split: str,
    seed: int,
) -> npt.NDArray[np.int64]:
    """Take the first n of each class in one seeded order, so a larger n contains a smaller n."""
    chosen = []
    for number, name in enumerate(names):
        of_class = rows[labels == number]
        if len(of_class) < n:
            raise UserError(
                f"{_asks(split, 'labels_per_class')}: {n} asked for, but the {split} split has "
                f"{len(of_class)} images of {name}"
            )
        chosen.append(of_class[rng.permutation(rng.key(seed, "labels", number), len(of_class))[:n]])
    return np.sort(np.concatenate(chosen))


def _some(rows: npt.NDArray[np.int64], n: int, split: str, seed: int) -> npt.NDArray[np.int64]:
    """Take the first n in one seeded order, so a larger n contains a smaller n."""
    if len(rows) < n:
        raise UserError(
            f"{_asks(split, 'train_images')}: {n} asked for, but the {split} split has "
            f"{len(rows)} images"
        )
    return np.sort(rows[rng.permutation(rng.key(seed, "images"), len(rows))[:n]])


def _asks(split: str, key: str) -> str:
    return "data.choose_with" if split == "val" else f"data.{key}"


def _fits(packed: PackedSet, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return packed.nbytes < 0.4 * free
