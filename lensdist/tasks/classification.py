"""What all classifiers share: cross-entropy, scores, and networks whose frozen part can be kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lensdist import rng
from lensdist.config.schema import ClassifierRun
from lensdist.data.augment import augment, draw_views
from lensdist.data.masks import good_pixels
from lensdist.data.transforms import Preprocess
from lensdist.evaluate import metrics
from lensdist.tasks.base import Batch, Split

_SELECT: dict[str, tuple[str, Literal["min", "max"]]] = {
    "accuracy": ("accuracy", "max"),
    "auc": ("auc_macro", "max"),
    "nll": ("nll", "min"),
}


class ClassificationTask:
    """Tell the classes of substructure apart.

    Args:
        cfg: the run's configuration.
        labels: the classes, in order.
        preprocess: from disk to network.
    """

    def __init__(self, cfg: ClassifierRun, labels: tuple[str, ...], preprocess: Preprocess) -> None:
        self.labels = labels
        self.preprocess = preprocess
        self.select = _SELECT[cfg.select]
        self._augment = cfg.augment
        self._smoothing = cfg.label_smoothing

    def loss(self, model: nn.Module, batch: Batch, key: int) -> Tensor:
        if "features.0" in batch:  # what the frozen part makes of the image, already turned
            features = sorted(name for name in batch if name.startswith("features."))
            logits = model(*(batch[name] for name in features))
        else:
            logits = model(self.image(augment(self._augment, self._key(key), batch)))
        return F.cross_entropy(logits, batch["label"], label_smoothing=self._smoothing)

    def view(self, samples: Tensor, key: int) -> Tensor:
        """Which view of each sample `loss` trains on: (B,) int64."""
        return draw_views(self._augment, self._key(key), samples)

    def outputs(self, model: nn.Module, batch: Batch) -> Batch:
        outputs = {"logits": model(self.image(batch)).float(), "label": batch["label"]}
        return {**outputs, **{k: batch[k] for k in ("mass",) if k in batch}}

    def score(self, outputs: Batch) -> dict[str, Any]:
        return metrics.classification(outputs["logits"], outputs["label"], list(self.labels))

    def image(self, batch: Batch) -> Tensor:
        """What the network sees: (B, C, H, W)."""
        if "seen" in batch:  # prepared once, for every epoch
            return batch["seen"]
        return self.preprocess(batch["image"], good_pixels(batch))

    def split(self, model: nn.Module, trains: Callable[[str], bool]) -> Split | None:
        return None

    @staticmethod
    def _key(key: int) -> int:
        return rng.key(key, "augment")
