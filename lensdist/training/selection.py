"""Decide which weights a run exports, and count the images that this takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lensdist.data.config import DataConfig
from lensdist.distributed.config import TrainConfig
from lensdist.utils.errors import UserError

FEWEST = 400
"""Validation images of each class from which on their scores choose (`select_from: auto`).

Late checkpoints of a run disagree on up to 3 % of the images. Then a difference of one point
between two of them is two standard errors, 2 sqrt(0.03 / n), at n = 1,200 images: 400 of each of
three classes. With fewer, the best score is mostly luck (docs/metrics.md).
"""


@dataclass(frozen=True)
class Selection:
    """The choice of weights, and its images."""

    best: bool
    """Whether the best checkpoint by validation is exported, rather than the last."""
    train: int | None
    """Training images; None: a stream, which simulates new ones."""
    choose: int
    """Images that choose the weights; 0 for the last weights."""
    watch: int
    """Validation images that are scored but choose nothing."""

    @property
    def counts(self) -> dict[str, Any]:
        """The numbers of images, for the export."""
        return {name: count for name, count in asdict(self).items() if name in ("train", "choose")}

    def __str__(self) -> str:
        trains = "a stream trains" if self.train is None else f"{self.train:,} images train"
        choose = f"{self.choose:,} more choose" if self.choose else "none choose"
        watch = f"; {self.watch:,} more are scored only" if self.watch else ""
        return f"{trains}, {choose}: {'the best' if self.best else 'the last'} weights count{watch}"


def selection(
    train: TrainConfig, data: DataConfig, trained: int | None, validated: int, classes: int
) -> Selection:
    """Return the selection of a run.

    Args:
        train: `select_from` and `early_stop`.
        data: `choose_with`, and whether the number of images is limited.
        trained: training images; None for a stream.
        validated: validation images.
        classes: classes of the data.

    Raises:
        UserError: validation should choose, but none of the limited images are for that.
    """
    none = data.limited and data.choose_with == 0
    best = train.select_from == "best"
    if train.select_from == "auto":
        wished = train.early_stop is not None or data.choose_with not in (0, "split")
        best = wished or (not none and validated >= FEWEST * max(1, classes))
    chooses = best or train.early_stop is not None
    if chooses and none:
        key = "train.early_stop" if train.early_stop is not None else "train.select_from: best"
        raise UserError(
            f"{key} lets validation choose, but no image is there for it: set data.choose_with to "
            f"how many of {data.limited} choose rather than train (or to split, for all "
            "validation images beyond that number)"
        )
    counted = validated if chooses else 0
    return Selection(best, trained, counted, validated - counted)
