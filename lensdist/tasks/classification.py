"""The base of the classifiers: cross-entropy, scores, figures, and the columns of `predict`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator

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
    "average_precision": ("average_precision", "max"),
}


class ClassifierSettings(TaskSettings):
    """The settings that all classifiers share."""

    described: ClassVar[tuple[str, ...]] = ("model", "positive", "threshold")

    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="The label smoothing of the cross-entropy: the fraction of each label that is "
        "spread over all classes.",
    )
    select: Literal["accuracy", "nll", "auc", "average_precision"] = Field(
        "accuracy",
        description="The validation score that selects the best checkpoint; average_precision "
        "needs `positive`.",
    )
    positive: str | None = Field(
        None,
        description="The class to find, where the set has two: scores are also average precision, "
        "purity and completeness, and `predict` names it where its probability reaches "
        "`threshold`. null: `predict` names the most probable class.",
    )
    threshold: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="The least probability with which `predict` names the class to find. null: "
        "that of the highest F1 on validation, found when the run ends.",
    )

    @property
    def selects(self) -> Choice:
        return _SELECTS[self.select]

    @model_validator(mode="after")
    def _finding_needs_a_class(self) -> Self:
        for given, name in (
            (self.select == "average_precision", "select: average_precision"),
            (self.threshold is not None, "threshold"),
        ):
            if given and self.positive is None:
                raise ValueError(f"{name} needs positive, the class to find")
        return self


C = TypeVar("C", bound=ClassifierSettings)


class ClassificationTask(Task[C]):
    """The base class of classification tasks; the network maps (B, C, H, W) to (B, classes)."""

    answer = "logits"
    needs_labels = True
    figures: ClassVar[tuple[str, ...]] = (
        "roc.png", "confusion.png", "reliability.png", "purity.png",
    )  # fmt: skip
    harder = ("plain", "mass_third", "mass_tenth", "psf_wide", "psf_narrow")
    averages_views = True
    incomplete = ("mass",)
    _threshold: float | None = None

    @classmethod
    def check_data(cls, cfg: C, packed: PackedSet, data: DataConfig) -> None:
        labels = data.classes or packed.manifest.labels
        if len(labels) < 2:
            raise UserError(
                f"task {cls.name}: the data has {len(labels)} classes; pack a set with two or more"
            )
        if cfg.positive is not None and (len(labels) != 2 or cfg.positive not in labels):
            raise UserError(
                f"positive: {cfg.positive} must be one of two classes; {packed.path} has "
                f"{', '.join(labels)}: name one of them, and both in data.classes if there are more"
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

        logits, truth = outputs["logits"], outputs["label"]
        found = metrics.classification(logits, truth, list(self.labels))
        return found | (self._found(logits, truth) if self.finds else {})

    def intervals(self, outputs: Batch) -> dict[str, Any]:
        from lensdist.metrics import finding
        from lensdist.metrics import scores as metrics

        found = metrics.intervals(outputs["logits"], outputs["label"])
        if self.finds:
            found |= finding.intervals(*self._odds(outputs["logits"], outputs["label"]))
        return found

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

    @staticmethod
    def each(outputs: Batch) -> dict[str, Tensor]:
        logits, truth = outputs["logits"].double(), outputs["label"]
        return {
            "accuracy": (logits.argmax(1) == truth).double(),
            "nll": -logits.log_softmax(1).gather(1, truth[:, None].clamp(min=0))[:, 0],
        }

    def mistakes(self, outputs: Batch, most: int) -> list[tuple[int, dict[str, str]]]:
        p, said = outputs["logits"].softmax(1).max(1)
        truth = outputs["label"]
        (wrong,) = ((said != truth) & (truth >= 0)).nonzero(as_tuple=True)
        order = wrong[p[wrong].argsort(descending=True, stable=True)][:most].tolist()
        return [
            (
                i,
                {
                    "true": self.labels[truth[i]],
                    "predicted": self.labels[said[i]],
                    "p": f"{p[i]:.3f}",
                },
            )
            for i in order
        ]

    def draw(self, what: Drawing) -> tuple[dict[str, Any], list[Path]]:
        from lensdist.metrics import figures, finding
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
        if self.finds:
            found, title = self._odds(logits, truth), f"Finding {self.cfg.positive}, {what.title}"
            more["purity_completeness"] = curve = finding.curve(*found)
            drawn.append(finding.figure(folder / "purity.png", curve, scores, title))
        return more, drawn

    # ---- one class of two that is searched for

    @property
    def finds(self) -> bool:
        """Whether one class of two is searched for."""
        return self.cfg.positive in self.labels and len(self.labels) == 2

    @property
    def threshold(self) -> float:
        """The least probability with which an image is said to be of the class to find."""
        return self._threshold or self.cfg.threshold or 0.5

    def settle(self, outputs: Callable[[], Batch]) -> None:
        from lensdist.metrics import finding

        if self.finds and self.cfg.threshold is None:
            found = outputs()
            self._threshold = finding.best_threshold(*self._odds(found["logits"], found["label"]))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), **({"threshold": self.threshold} if self.finds else {})}

    def _odds(self, logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-odds of the class to find, and which images are of it."""
        which = self.labels.index(self.cfg.positive or "")
        return logits[:, which].double() - logits[:, 1 - which].double(), truth == which

    def _found(self, logits: Tensor, truth: Tensor) -> dict[str, Any]:
        from lensdist.metrics import finding

        return finding.scores(*self._odds(logits, truth), self.threshold)

    # ---- use of a trained model

    def predict(
        self, model: nn.Module, raw: Tensor, good: Tensor | None, batch: int
    ) -> dict[str, Tensor]:
        seen, measured = self.examined(raw, good)
        logits = model(seen)
        return {"logits": logits, "probs": logits.softmax(1), **measured}

    @property
    def columns(self) -> Columns:
        numbers = (f"{kind}_{name}" for kind in ("prob", "logit") for name in self.labels)
        return {"label": str, **dict.fromkeys(numbers, float)}

    @property
    def claims(self) -> frozenset[str]:
        return frozenset(["label", *(f"prob_{name}" for name in self.labels)])

    def row(self, answer: Answer) -> list[str | float]:
        label = self.labels[int(answer["probs"].argmax())]
        if self.finds:
            which = self.labels.index(self.cfg.positive or "")
            named = answer["probs"][which] >= self.threshold
            label = self.labels[which if named else 1 - which]
        return [label, *(float(x) for key in ("probs", "logits") for x in answer[key])]
