"""Classification with the MAE's encoder (task VI.A): fine-tuned, probed, or from scratch."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lensdist import rng
from lensdist.config.schema import FinetuneRun
from lensdist.data.preprocess import Preprocess, augment
from lensdist.evaluate import metrics
from lensdist.models.classifier import Classifier
from lensdist.tasks.base import Batch, Stage
from lensdist.tasks.mae import pixel_weight

_SELECT: dict[str, tuple[str, Literal["min", "max"]]] = {
    "accuracy": ("accuracy", "max"),
    "auc": ("auc_macro", "max"),
    "nll": ("nll", "min"),
}


class FinetuneTask:
    """Tell the classes of substructure apart.

    Args:
        cfg: the run's configuration.
        labels: the classes, in order.
        preprocess: from disk to network; the pretraining's own where there is an encoder.
        encoder: the pretrained encoder's weights, by name; None: random ones.
    """

    name = "finetune"

    def __init__(
        self,
        cfg: FinetuneRun,
        labels: tuple[str, ...],
        preprocess: Preprocess,
        encoder: dict[str, Tensor] | None,
    ) -> None:
        self.cfg = cfg
        self.labels = labels
        self.preprocess = preprocess
        self._encoder = encoder
        self.select = _SELECT[cfg.select]

    def build(self) -> nn.Module:
        model = Classifier(self.cfg.model, len(self.labels))
        if self._encoder is not None:
            model.encoder.load_state_dict(self._encoder)
        return model

    def stages(self, epochs: int) -> list[Stage]:
        if self.cfg.linear_probe:
            return [Stage(epochs, ("head.",))]
        # Freezing a random encoder would only waste epochs: from scratch everything trains.
        frozen = min(self.cfg.frozen_epochs, epochs) if self._encoder is not None else 0
        stages = [Stage(frozen, ("head.",)), Stage(epochs - frozen, ("",))]
        return [s for s in stages if s.epochs]

    def loss(self, model: nn.Module, batch: Batch, key: int) -> Tensor:
        batch = augment(self.cfg.augment, rng.key(key, "augment"), batch)
        logits = model(self._image(batch))
        return F.cross_entropy(logits, batch["label"], label_smoothing=self.cfg.label_smoothing)

    def outputs(self, model: nn.Module, batch: Batch) -> Batch:
        outputs = {"logits": model(self._image(batch)).float(), "label": batch["label"]}
        return {**outputs, **{k: batch[k] for k in ("mass",) if k in batch}}

    def score(self, outputs: Batch) -> dict[str, Any]:
        return metrics.classification(outputs["logits"], outputs["label"], list(self.labels))

    def describe(self) -> dict[str, Any]:
        return {
            "model": self.cfg.model.model_dump(mode="json"),
            "init": "random" if self._encoder is None else "mae",
        }

    def _image(self, batch: Batch) -> Tensor:
        weight = pixel_weight(batch)
        return self.preprocess(batch["image"], None if weight is None else weight > 0)
