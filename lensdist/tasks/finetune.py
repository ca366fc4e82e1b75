"""Classification with the MAE's encoder (task VI.A): fine-tuned, probed, or from scratch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from lensdist.config.schema import FinetuneRun
from lensdist.data.transforms import Preprocess
from lensdist.models.classifier import Classifier
from lensdist.models.split import Part
from lensdist.tasks.base import Split, Stage
from lensdist.tasks.classification import ClassificationTask


class FinetuneTask(ClassificationTask):
    """Tell the classes apart with a vision transformer.

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
        super().__init__(cfg, labels, preprocess)
        self.cfg = cfg
        self._encoder = encoder

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

    def split(self, model: nn.Module, trains: Callable[[str], bool]) -> Split | None:
        whole = cast(Classifier, model)
        if any(trains(f"encoder.{name}") for name, _ in whole.encoder.named_parameters()):
            return None
        return Split(Part(whole, lambda x: (whole.pooled(x),)), Part(whole, whole.head))

    def describe(self) -> dict[str, Any]:
        return {
            "model": self.cfg.model.model_dump(mode="json"),
            "init": "random" if self._encoder is None else "mae",
        }
