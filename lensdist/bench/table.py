"""From logits on the test images to the few-label table and its figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensdist.bench.settings import FewLabels
from lensdist.evaluate import figures, metrics
from lensdist.evaluate.bootstrap import auc_interval, paired_bootstrap
from lensdist.evaluate.report import write_results

_DETECTORS = {"none": "noiseless", "euclid": "Euclid noise"}


@dataclass(frozen=True)
class Scored:
    """One method with one number of labels."""

    noise: str
    labels_per_class: int
    method: str
    logits: Tensor
    """(seeds, test images, classes)."""
    truth: Tensor
    """(test images,)."""

    @property
    def correct(self) -> Tensor:
        """(seeds, test images) 0 or 1."""
        return (self.logits.argmax(2) == self.truth).double()


def write_table(cfg: FewLabels, scored: list[Scored], baseline: str) -> Path:
    """Write `results.{md,json}` and a figure for each kind of noise; returns `results.md`."""
    scratch = {(s.noise, s.labels_per_class): s for s in scored if s.method == baseline}
    rows = [_row(s, scratch[s.noise, s.labels_per_class]) for s in scored]
    n = len(scored[0].truth)
    drawn = [
        figures.few_label(
            cfg.out / "figures" / f"few-labels-{noise}.png",
            [row for row in rows if row["noise"] == noise],
            n,
            f"Model II, {_DETECTORS[noise]}",
        )
        for noise in cfg.noise
    ]
    return write_results(cfg.out, rows, "Few labels", _notes(cfg, n), drawn)


def _row(mine: Scored, scratch: Scored) -> dict[str, Any]:
    names = [str(k) for k in range(mine.logits.shape[2])]
    each = [metrics.classification(logits, mine.truth, names) for logits in mine.logits]
    share = paired_bootstrap(mine.correct, torch.zeros_like(mine.correct))
    # Log-odds against the rest, seed by seed: resampled test images are the same for all seeds.
    odds = torch.cat([torch.logit(z.double().softmax(1).T, eps=1e-15) for z in mine.logits])
    hot = torch.nn.functional.one_hot(mine.truth, len(names)).T.bool()
    row: dict[str, Any] = {
        "noise": mine.noise,
        "labels_per_class": mine.labels_per_class,
        "method": mine.method,
        "accuracy": share["difference"],
        "accuracy_ci": share["ci"],
        "auc_macro": sum(one["auc_macro"] for one in each) / len(each),
        "auc_macro_ci": auc_interval(odds, hot.repeat(len(each), 1), seed=0, resamples=500),
        "accuracy_by_seed": [one["accuracy"] for one in each],
    }
    if mine is not scratch:
        gain = paired_bootstrap(mine.correct, scratch.correct)
        row |= {"over_scratch": gain["difference"], "over_scratch_ci": gain["ci"]}
    return row


def _notes(cfg: FewLabels, n: int) -> list[str]:
    return [
        f"Simulated DeepLenseSim Model II, 64x64, {cfg.images:,} images per class (8 in 10 for "
        f"training); size `{cfg.size}`; test n = {n:,} images, all classes alike, never trained "
        "on, nor used to choose anything.",
        f"All networks: {cfg.finetuning:,} fine-tuning steps on the labelled images, the last "
        "weights (to choose by validation would use more labels than there are to train on); "
        f"pretraining: {cfg.pretraining:,} steps, once for each method and noise.",
        f"{cfg.seeds} seeds: each draws its own labelled images (the same for all methods), order "
        "and initial head. Intervals are 95 %, over seeds and test images (AUC: over test images); "
        "`over scratch` is paired. They do not cover the luck of pretraining.",
        "All networks see what 120 principal components of `no_sub` training images leave of an "
        "image (`preprocess.scale: residual`), training from scratch too. The components know "
        "which images are `no_sub`: simulations of smooth lenses would give them without labels.",
        "`MAE, no_sub` and `PCA residual` learn from `no_sub` images, `MAE, all classes` from all "
        "training images without their labels, `MAE, stream` from fresh simulations.",
    ]
