"""A trained model's scores on a split, with figures: `RUN/eval/<split>.json`, `RUN/figures/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lensdist.config.schema import BaseRun, FinetuneRun, MaeRun
from lensdist.data.config import AugmentConfig, DataConfig
from lensdist.data.packed import PackedSet
from lensdist.data.source import View
from lensdist.engine.evaluation import outputs_of
from lensdist.engine.world import World
from lensdist.errors import UserError
from lensdist.evaluate import figures, metrics
from lensdist.export import LoadedModel, find_export, read_export
from lensdist.files import to_json, write_atomic
from lensdist.models.mae import pixel_mask
from lensdist.phases import COMPLETE
from lensdist.tasks.build import build_task
from lensdist.track.log import read

_SHOWN = 4  # images of a figure


def evaluate_model(
    model: Path, data: Path, split: str, batch: int = 256, out: Path | None = None
) -> tuple[dict[str, Any], list[Path]]:
    """Score a finished run, or an export, on a split of a packed set.

    Args:
        model: the run or export.
        data: the packed set.
        split: `train`, `val` or `test`.
        batch: images at a time.
        out: where to write; by default the run that the export belongs to, or the export.

    Returns:
        The scores, and the files written.

    Raises:
        UserError: the model, the data or both together do not fit, or `out` holds the scores of
            other data.
    """
    folder = find_export(model)
    description, weights = read_export(folder)
    packed = PackedSet(data)
    run = folder.parent if (folder.parent / COMPLETE).exists() else folder
    target = (out or run) / "eval" / f"{split}.json"
    _refuse_other_data(target, packed)

    cfg = _configuration(description, data)
    world = World(cfg)
    loaded = LoadedModel(description, weights, str(world.device))
    _check(loaded, packed)
    view = View(packed, split, cfg.data, cfg.seed, world.device)
    task = build_task(cfg, loaded.labels, loaded.preprocess)
    outputs = outputs_of(task, loaded.network, view, batch, world)
    scores = task.score(outputs)
    written: list[Path] = []
    if world.main:
        draw = (out or run) / "figures"
        title = f"{description['preset']}, {split}"
        if loaded.task == "finetune":
            more, written = _classifier(outputs, loaded.labels, scores, draw, title)
            scores |= more
        else:
            written = _autoencoder(loaded, view, packed, draw, title)
        rows = read(run / "metrics.jsonl")
        if rows:
            written.append(figures.learning_curves(draw / "learning_curves.png", rows))
        facts = {
            "split": split,
            "data": {"path": str(data), "fingerprint": packed.manifest.fingerprint},
            "weights": description["sha256"],
            "metrics": scores,
        }
        written.insert(0, write_atomic(target, to_json(facts)))
    return scores, written


def _refuse_other_data(target: Path, packed: PackedSet) -> None:
    try:
        before = json.loads(target.read_text())["data"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if before != packed.manifest.fingerprint:
        raise UserError(f"{target} holds the scores of other data; give --out")


def _configuration(description: dict[str, Any], data: Path) -> BaseRun:
    """Just enough of a configuration for the task to score with."""
    common = {
        "run": {"dir": "."},
        "data": DataConfig(path=data, classes=tuple(description["labels"]) or None),
        "augment": AugmentConfig(rot180=False),
        "model": description["model"],
    }
    if description["task"] == "mae":
        return MaeRun(task="mae", mask=description["mask"], **common)
    return FinetuneRun(task="finetune", **common)


def _check(model: LoadedModel, packed: PackedSet) -> None:
    size, bands = (model.description["model"][k] for k in ("image_size", "in_channels"))
    if packed.manifest.image_shape != (bands, size, size):
        raise UserError(
            f"the model takes images of {bands}x{size}x{size} but {packed.path} holds "
            f"{'x'.join(map(str, packed.manifest.image_shape))}"
        )


def _classifier(
    outputs: dict[str, torch.Tensor],
    labels: tuple[str, ...],
    scores: dict[str, Any],
    folder: Path,
    title: str,
) -> tuple[dict[str, Any], list[Path]]:
    logits, truth = outputs["logits"], outputs["label"]
    more: dict[str, Any] = metrics.intervals(logits, truth)
    more["roc"] = metrics.roc_curves(logits, truth, labels)
    more["reliability"] = metrics.reliability(logits, truth)
    if "mass" in outputs and {"cdm", "axion"} <= set(labels):
        more["by_axion_mass"] = metrics.mass_binned(logits, truth, outputs["mass"], labels)
    return more, [
        figures.roc(
            folder / "roc.png", more["roc"], scores["auc_per_class"], scores["n"], f"ROC, {title}"
        ),
        figures.confusion(
            folder / "confusion.png", scores["confusion"], labels, f"Confusion, {title}"
        ),
        figures.reliability(
            folder / "reliability.png", more["reliability"], scores["ece"], f"Reliability, {title}"
        ),
    ]


def _autoencoder(
    model: LoadedModel, view: View, packed: PackedSet, folder: Path, title: str
) -> list[Path]:
    # As the network sees them: under `scale: residual` the arc is not for it to draw.
    seen = model.preprocess(view.gather(np.arange(min(_SHOWN, len(view))))["image"])
    drawn, mask = model.reconstruct(seen)
    hidden = pixel_mask(mask, model.description["model"]["patch_size"])
    return [
        figures.reconstructions(
            folder / "reconstructions.png",
            *(t[:, 0].cpu().numpy() for t in (seen, hidden, drawn)),
            unit=f"as the network sees them: {model.preprocess.cfg.scale}",
            pixel_scale=packed.manifest.pixel_scale_arcsec,
            title=f"Masked autoencoder, {title}",
        )
    ]
