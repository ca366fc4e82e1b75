"""Measure the gain of pretraining with few labels: simulate, train and compare in one command.

DIR/data/<noise>           simulated packed sets DIR/runs/<noise>/<name>    ordinary runs of
`lensdist train`; DIR/logs, their messages DIR/results.{md,json}      accuracy by labels per class,
each method against training from scratch

Every classifier of a row has the same labelled images, steps and test images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.data import simulated_set
from experiments.residual import ResidualFeatures, logistic_regression
from experiments.runs import Job, check_presets, job, run_all
from experiments.scores import correct, over_seeds
from experiments.settings import PRESETS, FewLabels
from lensdist.data.config import DataConfig
from lensdist.data.dataset import PackedSet
from lensdist.data.subset import View
from lensdist.metrics import figures
from lensdist.metrics.report import write_results
from lensdist.metrics.seeds import paired_difference
from lensdist.phases import completed
from lensdist.sim.config import SimConfig

SMOOTH = "no_sub"
SCRATCH = "from scratch"
RESIDUAL = "PCA residual"
PRETRAINED = {  # the data of each pretraining, as settings of `configs/mae`
    "MAE, no_sub": (f"data.classes=[{SMOOTH}]",),
    "MAE, all classes": ("data.classes=null",),
    "MAE, stream": ("data.classes=null", "data.source=stream"),
}
_DATA_SEED = 0
_DETECTORS = {
    "none": "noiseless",
    "euclid": "Euclid noise",
    "deeplense_euclid": "Euclid noise before launch",
}
METHODS = (SCRATCH, *PRETRAINED, RESIDUAL)
# Random weights need another learning rate than pretrained ones, whose rate is in the preset.
# Small: both chosen among 3e-4, 1e-3 and 2e-3 on another set (docs/log.md); full: not tuned yet.
SCRATCH_LR = {"small": 1e-3, "full": 3e-4}


@dataclass(frozen=True)
class Scored:
    """The outputs of one method with one number of labels."""

    noise: str
    labels_per_class: int
    method: str
    logits: Tensor
    """(seeds, test images, classes)."""
    truth: Tensor
    """(test images,)."""
    labels: int
    """Labelled images that trained a classifier or chose its weights."""

    @property
    def correct(self) -> Tensor:
        """The correct answers: (seeds, test images) 0 or 1."""
        return correct(self.logits, self.truth)


def make(cfg: FewLabels) -> Path:
    """Run what is not finished yet, and return the path of `results.md`.

    Raises:
        UserError: the presets do not exist, or `cfg.out` holds a benchmark of other settings.
        RunError: a run failed.
        StoppedError: a run was told to stop and has saved.
    """
    check_presets(cfg, [f"{task}/{PRESETS[cfg.size]}" for task in ("mae", "finetune")])
    sims = {noise: SimConfig(family="model_ii", noise=noise) for noise in cfg.noise}
    sets = {
        noise: simulated_set(cfg.out / "data" / noise, sim, cfg.images, _DATA_SEED)
        for noise, sim in sims.items()
    }
    pretraining = [one for noise in cfg.noise for one in _pretraining(cfg, noise).values()]
    run_all(pretraining, cfg.jobs, "pretraining")
    # Fewest labels first, and all methods of a seed together: a stopped benchmark is readable.
    finetuning = {noise: dict(_finetuning(cfg, noise)) for noise in cfg.noise}
    run_all([one for runs in finetuning.values() for one in runs.values()], cfg.jobs, "fine-tuning")
    for run in pretraining:
        completed(run.run)  # raises an error if its files were altered
    scored: list[Scored] = []
    for noise, packed in sets.items():
        scored += _scored(cfg, noise, packed, finetuning[noise])
    return write_table(cfg, scored, SCRATCH)


# ---- runs


def _pretraining(cfg: FewLabels, noise: str) -> dict[str, Job]:
    preset, data = f"mae/{PRESETS[cfg.size]}", cfg.out / "data" / noise
    steps = f"train.max_steps={cfg.pretraining}"
    sim = f"data.sim={{family: model_ii, noise: {noise}}}"
    return {
        name: job(cfg, preset, noise, name, steps, sim, *settings, data=data)
        for name, settings in PRETRAINED.items()
    }


def _finetuning(cfg: FewLabels, noise: str) -> Iterator[tuple[tuple[str, int, int], Job]]:
    fixed = (
        f"train.max_steps={cfg.finetuning}",
        # The last weights count, and nothing is validated: images that choose are labels, too.
        "train.select_from=last",
        "train.eval_every_epochs=1000000000",
        "frozen_epochs=0",
        f"checkpoint.every_steps={cfg.finetuning}",
    )
    preset, data = f"finetune/{PRESETS[cfg.size]}", cfg.out / "data" / noise
    encoders = {name: [f"encoder={one.run}"] for name, one in _pretraining(cfg, noise).items()}
    encoders = {SCRATCH: ["encoder=null", f"optim.lr={SCRATCH_LR[cfg.size]}"], **encoders}
    for n, seed in product(cfg.labels, range(cfg.seeds)):
        few = (f"data.labels_per_class={n}", f"seed={seed}")
        for method, own in encoders.items():
            name = f"{method} n{n} s{seed}"
            words = (*fixed, *few, *own)
            yield (method, n, seed), job(cfg, preset, noise, name, *words, data=data, test=True)


# ---- scores


def _scored(
    cfg: FewLabels, noise: str, packed: PackedSet, runs: Mapping[tuple[str, int, int], Job]
) -> Iterator[Scored]:
    cpu = torch.device("cpu")
    all_ = DataConfig(path=packed.path)
    test = _everything(View(packed, "test", all_, 0, cpu))
    smooth = View(packed, "train", DataConfig(path=packed.path, classes=(SMOOTH,)), 0, cpu)
    features = ResidualFeatures(_everything(smooth)["image"])
    of_test = features(test["image"])
    for n in cfg.labels:
        logits: dict[str, list[Tensor]] = {method: [] for method in METHODS}
        for seed in range(cfg.seeds):
            for method in (SCRATCH, *PRETRAINED):
                logits[method].append(runs[method, n, seed].logits)
            # The same images as for fine-tuning with this seed.
            few = DataConfig(path=packed.path, labels_per_class=n)
            train = _everything(View(packed, "train", few, seed, cpu))
            found = logistic_regression(
                features(train["image"]), train["label"], of_test, len(packed.manifest.labels)
            )
            logits[RESIDUAL].append(found)
        for method in METHODS:
            labels = len(train["label"])
            if method != RESIDUAL:
                labels = sum(runs[method, n, 0].counts.values())
            yield Scored(noise, n, method, torch.stack(logits[method]), test["label"], labels)


def _everything(view: View) -> dict[str, Any]:
    return view.gather(np.arange(len(view)))


# ---- the table


def write_table(cfg: FewLabels, scored: list[Scored], baseline: str) -> Path:
    """Write `results.{md,json}` and a figure for each kind of noise; return `results.md`."""
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
        "labels": mine.labels,
        **over_seeds(mine.logits, mine.truth),
    }
    del row["ece"]  # not informative for networks stopped after so few steps
    if mine is not scratch:
        gain = paired_difference(mine.correct, scratch.correct)
        row |= {"over_scratch": gain["difference"], "over_scratch_ci": gain["ci"]}
    return row


def _notes(cfg: FewLabels, n: int) -> list[str]:
    return [
        f"Simulated DeepLenseSim Model II, 64x64, {cfg.images:,} images per class (8 in 10 for "
        f"training); size `{cfg.size}`; test n = {n:,} images, all classes alike, never trained "
        "on, nor used to choose anything.",
        f"All networks: {cfg.finetuning:,} fine-tuning steps on the labelled images, the last "
        "weights; `labels` counts the images that train, and none choose; "
        f"pretraining: {cfg.pretraining:,} steps, once for each method and noise.",
        f"{cfg.seeds} seeds: each draws its own labelled images (the same for all methods), order "
        "and initial head. Intervals are 95 %, over seeds and test images; "
        "`over scratch` is paired. They do not cover the luck of pretraining.",
        "All networks see what 120 principal components of `no_sub` training images leave of an "
        "image (`preprocess.scale: residual`), training from scratch too. The components use "
        "the label `no_sub`: simulations of smooth lenses would replace it.",
        "`MAE, no_sub` and `PCA residual` learn from `no_sub` images, `MAE, all classes` from all "
        "training images without their labels, `MAE, stream` from fresh simulations.",
    ]
