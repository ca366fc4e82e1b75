"""Figures of a scored split, and the curves they are drawn from, by task."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lensdist.data.dataset import PackedSet
from lensdist.data.masks import good_pixels
from lensdist.data.subset import View
from lensdist.evaluate import figures, metrics, pictures
from lensdist.loaded import LoadedModel
from lensdist.models.mae import pixel_mask
from lensdist.models.resample import bicubic, enlarge, with_means
from lensdist.tasks.base import Batch

NAMES = (
    "roc", "confusion", "reliability", "reconstructions", "super_resolution", "learning_curves",
    "hard",
)  # fmt: skip
"""Of all figures that are drawn beside scores."""
_SHOWN = 4  # images of a figure
_PAIRS = 2  # in two rows each


def classifier(
    outputs: Batch,
    labels: tuple[str, ...],
    scores: dict[str, Any],
    folder: Path,
    title: str,
) -> tuple[dict[str, Any], list[Path]]:
    logits, truth = outputs["logits"], outputs["label"]
    more: dict[str, Any] = {"reliability": metrics.reliability(logits, truth)}
    drawn = []
    if len(labels) <= metrics.MANY_CLASSES:
        more["roc"] = metrics.roc_curves(logits, truth, labels)
        drawn.append(
            figures.roc(
                folder / "roc.png",
                more["roc"],
                scores["auc_per_class"],
                scores["n"],
                f"ROC, {title}",
            )
        )
    if "mass" in outputs and {"cdm", "axion"} <= set(labels):
        more["by_axion_mass"] = metrics.mass_binned(logits, truth, outputs["mass"], labels)
    return more, [
        *drawn,
        figures.confusion(
            folder / "confusion.png", scores["confusion"], labels, f"Confusion, {title}"
        ),
        figures.reliability(
            folder / "reliability.png", more["reliability"], scores["ece"], f"Reliability, {title}"
        ),
    ]


def autoencoder(
    model: LoadedModel, view: View, packed: PackedSet, folder: Path, title: str
) -> list[Path]:
    # As the network sees them: under `scale: residual` the arc is not for it to draw.
    batch = view.gather(np.arange(min(_SHOWN, len(view))))
    seen = model.preprocess(batch["image"], good_pixels(batch))
    drawn, mask = model.reconstruct(seen)
    hidden = pixel_mask(mask, model.description["model"]["patch_size"])
    return [
        pictures.reconstructions(
            folder / "reconstructions.png",
            *(t[:, 0].cpu().numpy() for t in (seen, hidden, drawn)),
            unit=f"as the network sees them: {model.preprocess.cfg.scale}",
            pixel_scale=packed.manifest.pixel_scale_arcsec,
            title=f"Masked autoencoder, {title}",
        )
    ]


def enlarged(model: LoadedModel, view: View, packed: PackedSet, folder: Path, title: str) -> Path:
    batch = view.gather(np.arange(min(_PAIRS, len(view))))
    lr, good = batch["image"].cpu(), good_pixels(batch)
    factor = batch["target"].shape[-1] // lr.shape[-1]
    given = None if good is None else good.expand_as(batch["image"]).cpu()
    found = model.predict(lr.numpy(), good=None if given is None else given.numpy())
    if given is not None:  # blank in all pictures
        lr = torch.where(given, lr, math.nan)
    shown = {
        "LR": lr,
        "bicubic": bicubic(lr, factor),
        "ours": torch.from_numpy(found["image"]),
        "HR": batch["target"].cpu() + 0 * enlarge(lr, factor),
        **({"truth": batch["truth"]} if "truth" in batch else {}),
    }
    return pictures.super_resolved(
        folder / "super_resolution.png",
        {name: image[:, 0].cpu().numpy() for name, image in shown.items()},
        with_means(shown["truth"].cpu(), lr)[:, 0].numpy() if "truth" in shown else None,
        sigma=found["sigma"][:, 0] if "sigma" in found else None,
        pixel_scale=packed.manifest.pixel_scale_arcsec,
        title=f"Super-resolution, {title}",
    )
