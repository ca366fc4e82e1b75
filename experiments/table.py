"""From logits on the test images to the few-label table and its figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from experiments.scores import correct, over_seeds
from experiments.settings import FewLabels
from lensdist.evaluate import figures
from lensdist.evaluate.bootstrap import paired_bootstrap
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
        return correct(self.logits, self.truth)


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
    row: dict[str, Any] = {
        "noise": mine.noise,
        "labels_per_class": mine.labels_per_class,
        "method": mine.method,
        **over_seeds(mine.logits, mine.truth),
    }
    del row["ece"]  # of networks stopped after so few steps, of no interest
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
