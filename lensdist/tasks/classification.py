"""The base of the classifiers: cross-entropy, scores, figures, and the columns of `predict`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from lensdist.data.config import DataConfig
from lensdist.tasks.base import Task
from lensdist.tasks.settings import Choice, TaskSettings
from lensdist.tasks.types import Answer, Batch, Columns, Drawing
from lensdist.utils.errors import UserError
from lensdist.utils.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lensdist.data.dataset import PackedSet

_SELECTS: dict[str, Choice] = {
    "accuracy": ("accuracy", "max"),
    "auc": ("auc_macro", "max"),
    "nll": ("nll", "min"),
}


class ClassifierSettings(TaskSettings):
    """The settings that all classifiers share."""

    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="The label smoothing of the cross-entropy: the fraction of each label that is "
        "spread over all classes.",
    )
    select: Literal["accuracy", "nll", "auc"] = Field(
        "accuracy", description="The validation score that selects the best checkpoint."
    )

    @property
    def selects(self) -> Choice:
        return _SELECTS[self.select]


C = TypeVar("C", bound=ClassifierSettings)


class ClassificationTask(Task[C]):
    """The base class of classification tasks; the network maps (B, C, H, W) to (B, classes)."""

    answer = "logits"
    needs_labels = True
    figures: ClassVar[tuple[str, ...]] = ("roc.png", "confusion.png", "reliability.png")
    harder = ("plain", "mass_third", "mass_tenth", "psf_wide", "psf_narrow")
    averages_views = True
    incomplete = ("mass",)

    @classmethod
    def check_data(cls, cfg: C, packed: PackedSet, data: DataConfig) -> None:
        labels = data.classes or packed.manifest.labels
        if len(labels) < 2:
            raise UserError(
                f"task {cls.name}: the data has {len(labels)} classes; pack a set with two or more"
            )

    def loss(self, model: nn.Module, batch: Batch, key: int) -> Tensor:
        logits = self.forward(model, batch, key)
        return F.cross_entropy(logits, batch["label"], label_smoothing=self.cfg.label_smoothing)

    # ---- scores

    def outputs(self, model: nn.Module, batch: Batch) -> Batch:
        outputs = {"logits": model(self.image(batch)).float(), "label": batch["label"]}
        return {**outputs, **{k: batch[k] for k in ("mass",) if k in batch}}

    def score(self, outputs: Batch) -> dict[str, Any]:
        from lensdist.metrics import scores as metrics

        return metrics.classification(outputs["logits"], outputs["label"], list(self.labels))

    def intervals(self, outputs: Batch) -> dict[str, Any]:
        from lensdist.metrics import scores as metrics

        return metrics.intervals(outputs["logits"], outputs["label"])

    def not_computed(self) -> list[str]:
        from lensdist.metrics.scores import MANY_CLASSES

        many = len(self.labels) > MANY_CLASSES
        return ["ROC curves", "intervals of AUCs"] if many else []

    def average(self, outputs: Batch, views: Sequence[Batch]) -> dict[str, Any]:
        """Score the mean probabilities.

        `accuracy_gain` is the accuracy with averaging minus that without, paired over the images.
        """
        from lensdist.metrics.seeds import paired_difference

        truth = outputs["label"]
        log_p = torch.stack([view["logits"].double().log_softmax(1) for view in views])
        mean = log_p.logsumexp(0) - math.log(len(views))  # its softmax is the mean probability
        gain = paired_difference(mean.argmax(1) == truth, outputs["logits"].argmax(1) == truth)
        averaged = {**outputs, "logits": mean}
        return {
            **self.score(averaged),
            **self.intervals(averaged),
            "accuracy_gain": gain["difference"],
            "accuracy_gain_ci": gain["ci"],
        }

    def compare(self, outputs: Batch, plain: Batch) -> dict[str, Any]:
        from lensdist.metrics.seeds import paired_difference

        right, before = (x["logits"].argmax(1) == x["label"] for x in (outputs, plain))
        change = paired_difference(right, before)
        return {"accuracy_change": change["difference"], "accuracy_change_ci": change["ci"]}

    def draw(self, what: Drawing) -> tuple[dict[str, Any], list[Path]]:
        from lensdist.metrics import figures
        from lensdist.metrics import scores as metrics

        logits, truth = what.outputs["logits"], what.outputs["label"]
        scores, folder = what.scores, what.folder
        more: dict[str, Any] = {"reliability": metrics.reliability(logits, truth)}
        drawn = []
        if len(self.labels) <= metrics.MANY_CLASSES:
            more["roc"] = curves = metrics.roc_curves(logits, truth, self.labels)
            areas = scores["auc_per_class"]
            title = f"ROC, {what.title}"
            drawn.append(figures.roc(folder / "roc.png", curves, areas, scores["n"], title))
        if "mass" in what.outputs and {"cdm", "axion"} <= set(self.labels):
            more["by_axion_mass"] = metrics.mass_binned(
                logits, truth, what.outputs["mass"], self.labels
            )
        matrix, title = scores["confusion"], f"Confusion, {what.title}"
        drawn.append(figures.confusion(folder / "confusion.png", matrix, self.labels, title))
        bins, title = more["reliability"], f"Reliability, {what.title}"
        drawn.append(figures.reliability(folder / "reliability.png", bins, scores["ece"], title))
        return more, drawn

    # ---- use of a trained model

    def predict(
        self, model: nn.Module, raw: Tensor, good: Tensor | None, batch: int
    ) -> dict[str, Tensor]:
        logits = model(self.preprocess(raw, good))
        return {"logits": logits, "probs": logits.softmax(1)}

    @property
    def columns(self) -> Columns:
        numbers = (f"{kind}_{name}" for kind in ("prob", "logit") for name in self.labels)
        return {"label": str, **dict.fromkeys(numbers, float)}

    def row(self, answer: Answer) -> list[str | float]:
        label = self.labels[int(answer["probs"].argmax())]
        return [label, *(float(x) for key in ("probs", "logits") for x in answer[key])]
