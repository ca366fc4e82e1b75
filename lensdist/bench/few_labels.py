"""What is pretraining worth when labels are few? One command from nothing to a table.

DIR/data/<noise>           simulated packed sets
DIR/runs/<noise>/<name>    ordinary runs of `lensdist train`; DIR/logs, what they said
DIR/results.{md,json}      accuracy by labels per class, each method against training from scratch

Every classifier of a row has the same labelled images, steps and test images.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lensdist.bench.residual import ResidualFeatures, logistic_regression
from lensdist.bench.runs import LOGITS, Job, run_all
from lensdist.bench.scores import simulated_set
from lensdist.bench.settings import PRESETS, FewLabels
from lensdist.bench.table import Scored, write_table
from lensdist.data.config import DataConfig
from lensdist.data.dataset import PackedSet
from lensdist.data.subset import View
from lensdist.errors import UserError
from lensdist.phases import completed
from lensdist.sim.config import SimConfig

SMOOTH = "no_sub"
SCRATCH = "from scratch"
RESIDUAL = "PCA residual"
PRETRAINED = {  # what each is pretrained on, as settings of `configs/mae`
    "MAE, no_sub": (f"data.classes=[{SMOOTH}]",),
    "MAE, all classes": ("data.classes=null",),
    "MAE, stream": ("data.classes=null", "data.source=stream"),
}
_DATA_SEED = 0
METHODS = (SCRATCH, *PRETRAINED, RESIDUAL)
# Random weights want another learning rate than pretrained ones, whose is in the preset. Small:
# both chosen among 3e-4, 1e-3 and 2e-3 on another set (docs/log.md); full: a guess, not tuned yet.
SCRATCH_LR = {"small": 1e-3, "full": 3e-4}


def few_labels(cfg: FewLabels) -> Path:
    """Run what is not finished yet; returns the path of `results.md`.

    Raises:
        UserError: the presets are not there, or `cfg.out` holds a benchmark of other settings.
        RunError: a run failed.
        StoppedError: a run was asked to stop and has saved.
    """
    for task in ("mae", "finetune"):
        if not _preset(cfg, task).is_file():
            raise UserError(f"{_preset(cfg, task)} is not there; give --configs of a checkout")
    sets = {
        noise: simulated_set(
            _data(cfg, noise), SimConfig(family="model_ii", noise=noise), cfg.images, _DATA_SEED
        )
        for noise in cfg.noise
    }
    pretraining = [job for noise in cfg.noise for job in _pretraining(cfg, noise)]
    run_all(pretraining, cfg.jobs, "pretraining")
    # Fewest labels first, and all methods of a seed together: a stopped benchmark is readable.
    finetuning = [job for noise in cfg.noise for job in _finetuning(cfg, noise)]
    run_all(finetuning, cfg.jobs, "fine-tuning")
    for job in (*pretraining, *finetuning):
        completed(job.run)  # believe no run whose files were altered since
    scored = [each for noise, data in sets.items() for each in _scored(cfg, noise, data)]
    return write_table(cfg, scored, SCRATCH)


# ---- runs


def _preset(cfg: FewLabels, task: str) -> Path:
    return cfg.configs / task / PRESETS[cfg.size]


def _data(cfg: FewLabels, noise: str) -> Path:
    return cfg.out / "data" / noise


def _run(cfg: FewLabels, noise: str, name: str) -> Path:
    return cfg.out / "runs" / noise / name.lower().replace(",", "").replace(" ", "-")


def _job(
    cfg: FewLabels, preset: Path, noise: str, name: str, *settings: str, test: bool = False
) -> Job:
    run, data = _run(cfg, noise, name), _data(cfg, noise)
    words = (f"--config={preset}", *cfg.overrides, *settings, f"data.path={data}", f"run.dir={run}")
    log = cfg.out / "logs" / noise / f"{run.name}.log"
    return Job(run, words, log, data if test else None)


def _pretraining(cfg: FewLabels, noise: str) -> Iterator[Job]:
    for name, settings in PRETRAINED.items():
        steps = f"train.max_steps={cfg.pretraining}"
        sim = f"data.sim={{family: model_ii, noise: {noise}}}"
        yield _job(cfg, _preset(cfg, "mae"), noise, name, steps, sim, *settings)


def _finetuning(cfg: FewLabels, noise: str) -> Iterator[Job]:
    fixed = (
        f"train.max_steps={cfg.finetuning}",
        # The last weights count. To choose among steps by validation would take more labelled
        # images (a tenth of the set) than there are to train on, and few-label claims with them.
        "train.eval_every_epochs=1000000000",
        "frozen_epochs=0",
        f"checkpoint.every_steps={cfg.finetuning}",
    )
    preset = _preset(cfg, "finetune")
    for n in cfg.labels:
        for seed in range(cfg.seeds):
            few = (f"data.labels_per_class={n}", f"seed={seed}")
            for method in (SCRATCH, *PRETRAINED):
                encoder = "null" if method == SCRATCH else _run(cfg, noise, method)
                own = [f"encoder={encoder}"]
                own += [f"optim.lr={SCRATCH_LR[cfg.size]}"] if method == SCRATCH else []
                name = f"{method} n{n} s{seed}"
                yield _job(cfg, preset, noise, name, *fixed, *few, *own, test=True)


# ---- scores


def _scored(cfg: FewLabels, noise: str, packed: PackedSet) -> Iterator[Scored]:
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
                file = _run(cfg, noise, f"{method} n{n} s{seed}") / LOGITS
                logits[method].append(torch.from_numpy(np.load(file, allow_pickle=False)))
            # The very images that fine-tuning with this seed had.
            few = DataConfig(path=packed.path, labels_per_class=n)
            train = _everything(View(packed, "train", few, seed, cpu))
            found = logistic_regression(
                features(train["image"]), train["label"], of_test, len(packed.manifest.labels)
            )
            logits[RESIDUAL].append(found)
        for method in METHODS:
            yield Scored(noise, n, method, torch.stack(logits[method]), test["label"])


def _everything(view: View) -> dict[str, Any]:
    return view.gather(np.arange(len(view)))
