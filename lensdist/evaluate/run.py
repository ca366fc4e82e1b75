"""Score a trained model on a split, with figures: `RUN/eval/<split>.json`, `RUN/figures/`.

`RUN/eval/<split>.safetensors` holds the task's outputs for each image, and its row in the set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lensdist.data.augment import Turn, turned, views
from lensdist.data.config import AugmentConfig, DataConfig
from lensdist.data.dataset import PackedSet
from lensdist.data.sampler import Images
from lensdist.data.subset import View
from lensdist.distributed.context import DistributedContext
from lensdist.export.artifact import find_export, read_export
from lensdist.export.model import LoadedModel
from lensdist.metrics import drawing, figures
from lensdist.metrics.images import write_images
from lensdist.phases import COMPLETE, check_finished
from lensdist.tasks.registry import AnyTask
from lensdist.tasks.types import Batch, Drawing
from lensdist.tracking.metrics_log import read
from lensdist.training.validation import outputs_of
from lensdist.utils import provenance
from lensdist.utils.errors import UserError
from lensdist.utils.files import sha256, to_json, write_atomic
from lensdist.utils.sealed import read_json, sealed
from lensdist.utils.staging import check_ours, check_writable

_OURS = ("learning_curves.png", "hard.png")  # figures that no task draws
TTA = {
    "rot180": AugmentConfig(rot180=True),
    "dihedral": AugmentConfig(rot180=True, rot90=True, flip=True),
}
"""Test-time augmentation: the views that are averaged, by their names on the command line."""


class _Turned:
    """Images that are all turned in the same way."""

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
    """A trained model, and a packed set to score it on."""

    description: dict[str, Any]
    model: LoadedModel
    packed: PackedSet
    data: DataConfig
    world: DistributedContext
    run: Path
    """The folder of the run that made the model; of an export alone, its own folder."""
    out: Path
    """Folder for `eval/` and `figures/`."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """The model's class for classes of the set that are called otherwise."""

    @property
    def task(self) -> AnyTask:
        """The model's task."""
        return self.model.does

    def scores(self, outputs: Batch) -> dict[str, Any]:
        """Return the task's scores, with 95 % intervals if it has them."""
        return self.task.score(outputs) | self.task.intervals(outputs)

    def outputs(self, images: Images, batch: int) -> Batch:
        """Return the task's outputs for all images, `batch` at a time from the first."""
        return outputs_of(self.task, self.model.network, images, batch, self.world)

    def facts(self) -> dict[str, Any]:
        """Return the facts that identify the scores' data and weights."""
        data = {"path": str(self.packed.path), "fingerprint": self.packed.manifest.fingerprint}
        return {
            "data": data,
            **({"renamed": dict(self.renamed)} if self.renamed else {}),
            "weights": self.description["sha256"],
            "code": provenance.code(),
        }

    def target(self, name: str) -> Path:
        """Return the path of `eval/<name>.json`.

        Raises:
            UserError: it holds the scores of other data, or was not written by lensdist.
        """
        path = self.out / "eval" / f"{name}.json"
        names = (*self.task.figures, *_OURS)
        drawn = (file for name in names for file in drawing.files(self.out / "figures" / name))
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


def open_subject(
    model: Path, data: Path, out: Path | None = None, renamed: Mapping[str, str] | None = None
) -> Subject:
    """Open a finished run, or an export, and a packed set to score it on.

    Args:
        model: the run or export.
        data: the packed set.
        out: output folder; by default the export's run, or the export.
        renamed: the model's class for classes of the set that are called otherwise.

    Raises:
        UserError: the model or the data cannot be used, or they do not fit together.
    """
    check_finished(model)
    folder = find_export(model)
    description, weights = read_export(folder)
    packed = PackedSet(data)
    run = folder.parent if (folder.parent / COMPLETE).exists() else folder
    world = DistributedContext()
    loaded = LoadedModel(description, weights, str(world.device), thorough=True)
    choice = DataConfig(path=packed.path, classes=_classes(loaded, packed, renamed or {}))
    loaded.does.check_scored(loaded.does.cfg, packed)
    shape = loaded.does.cfg.image_shape
    if packed.manifest.image_shape != shape:
        raise UserError(
            f"the model takes images of {'x'.join(map(str, shape))} but {packed.path} holds "
            f"{'x'.join(map(str, packed.manifest.image_shape))}"
        )
    return Subject(description, loaded, packed, choice, world, run, out or run, renamed or {})


def score_split(
    subject: Subject, split: str, batch: int = 256, tta: str | None = None
) -> tuple[dict[str, Any], list[Path]]:
    """Score a model on a split of the packed set.

    Args:
        subject: the model and the set.
        split: `train`, `val`, `test` or `all`.
        batch: images at a time.
        tta: a name in `TTA`; also score the mean of the probabilities over these views.

    Returns:
        The scores, with those of `_unscored` and (with `tta`) of `_averaged`, and the files
        written.

    Raises:
        UserError: `eval/<split>.json` holds the scores of other data, the split has no label or no
            image of the model's classes, or `tta` is given for a model that is not a classifier.
    """
    target = subject.target(split)
    if tta is not None and not subject.task.averages_views:
        raise UserError(
            f"--tta is for classifiers, and {subject.run} is of task {subject.model.task}"
        )
    _check_labelled(subject, split)
    view = View(
        subject.packed,
        split,
        subject.data,
        0,
        subject.world.device,
        lenient=True,
        renamed=subject.renamed,
    )
    outputs = subject.outputs(view, batch)
    scores = subject.scores(outputs) | _unscored(subject, split)
    if tta is not None:
        scores["tta"] = _averaged(subject, view, batch, outputs, tta)
    if not subject.world.main:
        return scores, []
    folder = subject.out / "figures"
    title = f"{subject.description['preset']}, {split}"
    scale = subject.packed.manifest.pixel_scale_arcsec
    more, written = subject.task.draw(
        Drawing(outputs, scores, subject.model.network, view, scale, folder, title)
    )
    scores |= more
    rows = read(subject.run / "metrics.jsonl")
    if rows:
        written.append(figures.learning_curves(folder / "learning_curves.png", rows))
    each = {"sample": torch.from_numpy(view.rows), **outputs}
    images = write_images(target.with_suffix(".safetensors"), each)
    facts = {"split": split, **subject.facts(), "metrics": scores, "images": sha256(images)}
    return scores, [write_atomic(target, to_json(sealed(facts))), images, *written]


def _check_labelled(subject: Subject, split: str) -> None:
    """Check that images have labels, if scores need them.

    Raises:
        UserError: none has.
    """
    labels = subject.packed.labels[subject.packed.indices(split)]
    if subject.task.needs_labels and len(labels) and (labels < 0).all():
        raise UserError(
            f"the {len(labels):,} {split} images of {subject.packed.path} have no labels, so they "
            "cannot be scored: give --split train or val, or their files to `lensdist predict`"
        )


def _classes(
    model: LoadedModel, packed: PackedSet, renamed: Mapping[str, str]
) -> tuple[str, ...] | None:
    """Return the classes of the set to score, or None for all images.

    Raises:
        UserError: the set has none of the model's classes, or `renamed` names other ones.
    """
    for theirs, ours in renamed.items():
        if theirs not in packed.manifest.labels or ours not in model.labels:
            raise UserError(
                f"--map-labels {theirs}={ours}: give CLASS OF THE SET=CLASS OF THE MODEL; "
                f"{packed.path} has {', '.join(packed.manifest.labels) or 'no labels'}, and the "
                f"model {', '.join(model.labels) or 'no classes'}"
            )
    there = [renamed.get(name, name) for name in packed.manifest.labels]
    if not model.does.needs_labels and not there:
        return None
    if model.labels and not set(model.labels) & set(there):
        raise UserError(
            f"{packed.path} has none of the model's classes, {', '.join(model.labels)}; it has "
            f"{', '.join(there) or 'no labels'}. If they mean the same: --map-labels "
            f"{next(iter(there), 'a')}={model.labels[0]},…"
        )
    return model.labels or None


def _unscored(subject: Subject, split: str) -> dict[str, Any]:
    """Return what the scores do not cover.

    `left_out` counts, by class, the images whose class the model does not have, or that have none;
    `lacking` lists the model's classes without images; `not_computed` lists what is skipped for its
    many classes.
    """
    classes, packed = subject.data.classes, subject.packed
    names = [*packed.manifest.labels, "unlabelled"]  # whose number is -1
    numbers = np.asarray(packed.labels)[packed.indices(split)]
    found = np.bincount(numbers % len(names), minlength=len(names))
    counts = Counter[str]()
    for name, n in zip(names, found.tolist(), strict=True):
        counts[subject.renamed.get(name, name)] += n
    return {
        "left_out": {n: k for n, k in counts.items() if classes and k and n not in classes},
        "lacking": [name for name in classes or () if not counts.get(name)],
        "not_computed": subject.task.not_computed(),
    }


def _averaged(subject: Subject, view: View, batch: int, outputs: Batch, tta: str) -> dict[str, Any]:
    """Return `views` (the name), `n_views`, and the task's scores of the views' mean."""
    ways = views(TTA[tta])
    each = [outputs, *(subject.outputs(_Turned(view, way), batch) for way in ways[1:])]
    return {"views": tta, "n_views": len(ways), **subject.task.average(outputs, each)}
