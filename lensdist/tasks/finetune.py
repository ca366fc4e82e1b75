"""Task `finetune`: classification with the MAE's encoder (task VI.A), or from scratch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from lensdist.models.config import ClassifierConfig
from lensdist.tasks.classification import ClassificationTask, ClassifierSettings
from lensdist.tasks.encoder import EncoderSettings, EncoderTask, split_encoder
from lensdist.tasks.types import Split, Stage

if TYPE_CHECKING:
    from torch import nn


class FinetuneSettings(ClassifierSettings, EncoderSettings):
    """Classification with a vision transformer."""

    model: ClassifierConfig = ClassifierConfig()
    linear_probe: bool = Field(False, description="Train only the head, in all epochs.")

    @property
    def pools_into_batchnorm(self) -> bool:
        return self.model.head_norm


class FinetuneTask(EncoderTask[FinetuneSettings], ClassificationTask[FinetuneSettings]):
    """Classification with a vision transformer."""

    name = "finetune"
    settings = FinetuneSettings
    head: ClassVar[str] = "head."

    def network(self) -> nn.Module:
        from lensdist.models.classifier import Classifier

        return Classifier(self.cfg.model, len(self.labels))

    def stages(self, epochs: int) -> list[Stage]:
        if self.cfg.linear_probe:
            return [Stage(epochs, (self.head,))]
        return super().stages(epochs)

    def split(self, model: nn.Module, trains: Callable[[str], bool]) -> Split | None:
        return split_encoder(model, trains)
