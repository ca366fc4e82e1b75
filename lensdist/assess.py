"""A trained model's scores on a split, with figures: `RUN/eval/<split>.json`, `RUN/figures/`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from torch import Tensor

from lensdist import illustrate, provenance
from lensdist.config.schema import TASKS, BaseRun
from lensdist.data.config import AugmentConfig, DataConfig
from lensdist.data.packed import PackedSet
from lensdist.data.preprocess import Turn, turned, views
from lensdist.data.source import Images, View
from lensdist.data.staging import check_ours, check_writable
from lensdist.engine.evaluation import outputs_of
from lensdist.engine.world import World
from lensdist.errors import UserError
from lensdist.evaluate import figures, metrics, super_resolution
from lensdist.evaluate.bootstrap import paired_bootstrap
from lensdist.export import CONFIG, find_export, read_export
from lensdist.files import to_json, write_atomic
from lensdist.loaded import LoadedModel
from lensdist.phases import COMPLETE, check_finished
from lensdist.sealed import first_of, read_json, sealed
from lensdist.tasks.base import Batch, Task
from lensdist.tasks.build import build_task
from lensdist.tracking.metrics_log import read

_CLASSIFIERS = ("finetune", "common")
TTA = {
    "rot180": AugmentConfig(rot180=True),
    "dihedral": AugmentConfig(rot180=True, rot90=True, flip=True),
}
"""Test-time augmentation: the views that are averaged, named as the command line does."""


class _Turned:
    """Images, all turned alike."""

    def __init__(self, images: Images, way: Turn) -> None:
        self._images = images
        self._way = way

    def __len__(self) -> int:
        return len(self._images)

    def name_of(self, sample: int) -> str:
        return self._images.name_of(sample)

    def gather(self, places: npt.NDArray[np.int64]) -> Batch:
        return turned(self._images.gather(places), self._way)


@dataclass(frozen=True)
class Subject:
    """A trained model, opened to be scored on a packed set."""

    description: dict[str, Any]
    model: LoadedModel
    packed: PackedSet
    cfg: BaseRun
    world: World
    task: Task
    run: Path
    """The run that the model comes from; the export, where there is none."""
    out: Path
    """Where `eval/` and `figures/` are written."""

    @property
    def classifies(self) -> bool:
        """Whether the model tells classes apart."""
        return self.model.task in _CLASSIFIERS

    @property
    def enlarges(self) -> bool:
        """Whether the model draws large images from small ones."""
        return self.model.task == "sr"

    def scores(self, outputs: Batch) -> dict[str, Any]:
        """What the task makes of its outputs, with 95 % intervals where it has them."""
        found = self.task.score(outputs)
        if self.classifies:
            found |= metrics.intervals(outputs["logits"], outputs["label"])
        elif self.enlarges:
            found |= super_resolution.intervals(outputs)
        return found

    def outputs(self, images: Images, batch: int) -> Batch:
        """The task's outputs for all images, `batch` at a time from the first."""
        return outputs_of(self.task, self.model.network, images, batch, self.world)

    def facts(self) -> dict[str, Any]:
        """What scores must name to be worth anything: the data, and the weights."""
        data = {"path": str(self.packed.path), "fingerprint": self.packed.manifest.fingerprint}
        return {
            "data": data,
            "weights": self.description["sha256"],
            "code": provenance.code(),
        }

    def target(self, name: str) -> Path:
        """`eval/<name>.json`.

        Raises:
            UserError: it holds the scores of other data, or is no file of ours.
        """
        path = self.out / "eval" / f"{name}.json"
        drawn = (self.out / "figures" / f"{one}.png" for one in illustrate.NAMES)
        scored = any(path.parent.glob("*.json"))  # this split or another: then figures are ours
        check_ours(path, "data", beside=() if scored else tuple(drawn))
        check_writable(self.out / "figures")
        try:
            before = read_json(path)["data"]["fingerprint"]
        except FileNotFoundError:
            return path
        except (OSError, ValueError, KeyError, TypeError):
            before = None
        if before != self.packed.manifest.fingerprint:
            raise UserError(f"{path} holds the scores of other data; give --out")
        return path


def open_subject(model: Path, data: Path, out: Path | None = None) -> Subject:
    """Open a finished run, or an export, and a packed set to score it on.

    Args:
        model: the run or export.
        data: the packed set.
        out: where to write; by default the run that the export belongs to, or the export.

    Raises:
        UserError: the model, the data or both together do not fit.
    """
    check_finished(model)
    folder = find_export(model)
    description, weights = read_export(folder)
    packed = PackedSet(data)
    run = folder.parent if (folder.parent / COMPLETE).exists() else folder
    cfg = _configuration(description, packed)
    world = World(cfg)
    loaded = LoadedModel(description, weights, str(world.device))
    _check(loaded, packed)
    task = build_task(cfg, loaded.labels, loaded.preprocess, thorough=True)
    return Subject(description, loaded, packed, cfg, world, task, run, out or run)


def score_split(
    subject: Subject, split: str, batch: int = 256, tta: str | None = None
) -> tuple[dict[str, Any], list[Path]]:
    """Score a model on a split of the packed set.

    Args:
        subject: the model and the set.
        split: `train`, `val` or `test`.
        batch: images at a time.
        tta: a name in `TTA`; also score the mean of the probabilities over these views.

    Returns:
        The scores (with `tta`, see `_averaged`, where asked for, and with `_unscored`), and the
        files written.

    Raises:
        UserError: `eval/<split>.json` holds the scores of other data, the split has no image of
            the model's classes, or `tta` is asked of what is no classifier.
    """
    target = subject.target(split)
    if tta is not None and not subject.classifies:
        raise UserError(f"--tta is for classifiers, and {subject.run} is a {subject.model.task}")
    data, seed, device = subject.cfg.data, subject.cfg.seed, subject.world.device
    view = View(subject.packed, split, data, seed, device, lenient=True)
    outputs = subject.outputs(view, batch)
    scores = subject.scores(outputs) | _unscored(subject, split)
    if tta is not None:
        scores["tta"] = _averaged(subject, view, batch, outputs, tta)
    if not subject.world.main:
        return scores, []
    draw = subject.out / "figures"
    title = f"{subject.description['preset']}, {split}"
    if subject.classifies:
        more, written = illustrate.classifier(outputs, subject.model.labels, scores, draw, title)
        scores |= more
    elif subject.enlarges:
        written = [illustrate.enlarged(subject.model, view, subject.packed, draw, title)]
    else:
        written = illustrate.autoencoder(subject.model, view, subject.packed, draw, title)
    rows = read(subject.run / "metrics.jsonl")
    if rows:
        written.append(figures.learning_curves(draw / "learning_curves.png", rows))
    facts = {"split": split, **subject.facts(), "metrics": scores}
    return scores, [write_atomic(target, to_json(sealed(facts))), *written]


def _configuration(description: dict[str, Any], packed: PackedSet) -> BaseRun:
    """Just enough of a configuration for the task to score with."""
    labels, there = tuple(description["labels"]), packed.manifest.labels
    if description["task"] not in _CLASSIFIERS and not there:
        labels = ()  # only classifiers need any
    if labels and not set(labels) & set(there):
        raise UserError(
            f"{packed.path} has none of the model's classes, {', '.join(labels)}; it has "
            f"{', '.join(there) or 'no labels'}"
        )
    schema = TASKS[description["task"]]
    told = ("model", "mask", "learn", "loss", "floor", "data_range")
    parts = {
        key: description[key] for key in told if key in schema.model_fields & description.keys()
    }
    try:
        return schema(
            task=description["task"],
            run={"dir": "."},
            data=DataConfig(path=packed.path, classes=labels or None),
            augment=AugmentConfig(rot180=False),
            **parts,
        )
    except ValidationError as e:
        raise UserError(f"{CONFIG} does not say how to score: {first_of(e)}") from e


def _unscored(subject: Subject, split: str) -> dict[str, Any]:
    """What scores do not cover: `left_out`, the images of classes that the model does not know, or
    of none, by class; `lacking`, the model's classes of which there is no image; and
    `not_computed`, what there are too many classes for."""
    classes, packed = subject.cfg.data.classes, subject.packed
    names = [*packed.manifest.labels, "unlabelled"]  # whose number is -1
    numbers = np.asarray(packed.labels)[packed.indices(split)]
    counts = dict(zip(names, np.bincount(numbers % len(names), minlength=len(names)), strict=True))
    many = subject.classifies and len(subject.model.labels) > metrics.MANY_CLASSES
    return {
        "left_out": {n: int(k) for n, k in counts.items() if classes and k and n not in classes},
        "lacking": [name for name in classes or () if not counts.get(name)],
        "not_computed": ["ROC curves", "intervals of AUCs"] if many else [],
    }


def _check(model: LoadedModel, packed: PackedSet) -> None:
    if model.task == "sr":
        packed.require_pairs(model.description["model"]["factor"])
    size, bands = (model.description["model"][k] for k in ("image_size", "in_channels"))
    if packed.manifest.image_shape != (bands, size, size):
        raise UserError(
            f"the model takes images of {bands}x{size}x{size} but {packed.path} holds "
            f"{'x'.join(map(str, packed.manifest.image_shape))}"
        )


def _averaged(subject: Subject, view: View, batch: int, outputs: Batch, tta: str) -> dict[str, Any]:
    """Scores and intervals of the views' mean probabilities, and what the averaging gains.

    Returns:
        `views` (the name), `n_views`, all that the plain scores hold, and `accuracy_gain` with
        `accuracy_gain_ci`: accuracy with minus without, paired over the images.
    """
    ways = views(TTA[tta])
    plain, truth = outputs["logits"], outputs["label"]
    each = [plain, *(subject.outputs(_Turned(view, way), batch)["logits"] for way in ways[1:])]
    log_p = torch.stack([logits.double().log_softmax(1) for logits in each])
    mean: Tensor = log_p.logsumexp(0) - math.log(len(ways))  # their softmax is the mean
    gain = paired_bootstrap(mean.argmax(1) == truth, plain.argmax(1) == truth)
    return {
        "views": tta,
        "n_views": len(ways),
        **subject.task.score({**outputs, "logits": mean}),
        **metrics.intervals(mean, truth),
        "accuracy_gain": gain["difference"],
        "accuracy_gain_ci": gain["ci"],
    }
