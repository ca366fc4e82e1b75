"""The common task: how many of `reference`'s errors `best` does away with.

DIR/data                simulated packed set
DIR/runs/<name>         ordinary runs of `lensdist train`; DIR/logs, what they said
DIR/results.{md,json}   accuracy by training images, each preset against `reference`

Both presets of a row have the same training, validation and test images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.data import simulated_set
from experiments.runs import LOGITS, Job, run_all
from experiments.scores import correct, over_seeds
from experiments.settings import CommonTable
from lensdist.errors import UserError
from lensdist.evaluate.bootstrap import error_reduction, paired_bootstrap
from lensdist.evaluate.report import write_results
from lensdist.phases import completed
from lensdist.sealed import read_json
from lensdist.sim.config import SimConfig

REFERENCE = "reference"
# Each row of the table: a preset, and settings on top of it. Without its fit `best` sees the images
# as large as it would see what the fit leaves.
_DATA_SEED = 1  # not the set on which `best` was settled
_NO_FIT = ("preprocess.scale=minmax", "model.resize=75")
METHODS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    size: {
        REFERENCE: (reference, ()),
        "best": (best, ()),
        "best without the fit": (best, _NO_FIT),
    }
    for size, reference, best in (
        ("small", "small-reference.yaml", "small.yaml"),
        ("full", "reference.yaml", "best.yaml"),
    )
}


def make(cfg: CommonTable) -> Path:
    """Run what is not finished yet; returns the path of `results.md`.

    Raises:
        UserError: the presets are not there, or `cfg.out` holds a benchmark of other settings.
        RunError: a run failed.
        StoppedError: a run was asked to stop and has saved.
    """
    for preset, _ in METHODS[cfg.size].values():
        if not (cfg.configs / "common" / preset).is_file():
            raise UserError(f"{cfg.configs / 'common' / preset} is not there; give --configs")
    packed = simulated_set(cfg.out / "data", SimConfig(family="common"), cfg.per_class, _DATA_SEED)
    jobs = {
        (n, method, seed): _job(cfg, n, method, seed)
        for n in cfg.trained_on
        for seed in range(cfg.seeds)
        for method in METHODS[cfg.size]
    }
    run_all(list(jobs.values()), cfg.jobs, "common task")
    records = {key: _record(job) for key, job in jobs.items()}
    truth = torch.from_numpy(packed.labels[packed.indices("test")])
    rows = []
    for n in cfg.trained_on:
        of_reference: Tensor | None = None
        for method in METHODS[cfg.size]:
            runs = [records[n, method, seed] for seed in range(cfg.seeds)]
            logits = torch.stack([run["logits"] for run in runs])
            row = {
                "training_images": n,
                "method": method,
                "init": runs[0]["init"],
                **over_seeds(logits, truth),
                "seconds": sum(run["seconds"] for run in runs) / len(runs),
            }
            right = correct(logits, truth)
            if of_reference is None:
                of_reference = right
            else:
                gain = paired_bootstrap(right, of_reference)
                fewer = error_reduction(right, of_reference)
                row |= {"gain": gain["difference"], "gain_ci": gain["ci"]}
                row |= {"errors_avoided": fewer["reduction"], "errors_avoided_ci": fewer["ci"]}
            rows.append(row)
    return write_results(cfg.out, rows, "Common task", _notes(cfg, len(truth)))


def _job(cfg: CommonTable, n: int, method: str, seed: int) -> Job:
    data = cfg.out / "data"
    run = cfg.out / "runs" / f"{method.replace(' ', '-')}-n{n}-s{seed}"
    preset, settings = METHODS[cfg.size][method]
    words = (
        f"--config={cfg.configs / 'common' / preset}",
        *settings,
        *cfg.overrides,
        f"data.path={data}",
        f"data.labels_per_class={n // 3}",
        f"seed={seed}",
        f"run.dir={run}",
    )
    return Job(run, words, cfg.out / "logs" / f"{run.name}.log", data)


def _record(job: Job) -> dict[str, Any]:
    record = completed(job.run)  # believe no run whose files were altered since
    assert record is not None
    export = read_json(job.run / "export" / "config.json")
    logits = torch.from_numpy(np.load(job.run / LOGITS, allow_pickle=False))
    return {"seconds": record["seconds"], "init": export["init"], "logits": logits}


def _notes(cfg: CommonTable, n: int) -> list[str]:
    names = dict.fromkeys(preset for preset, _ in METHODS[cfg.size].values())
    presets = ", ".join(f"configs/common/{name}" for name in names)
    return [
        f"Simulated common task, 150x150, {cfg.per_class:,} images per class (each run draws its "
        f"own from those for training); test n = {n:,} images, looked at once.",
        f"Presets: {presets}; the validation split chose the weights.",
        "`best without the fit`: its network and schedule on the images as they are.",
        f"{cfg.seeds} seed(s): training images, order, initial weights. Intervals are 95 %, over "
        "seeds and test images; `gain` (in accuracy) and `errors avoided` are paired with "
        "`reference` on the same images.",
        f"Seconds are a run's last life, of {cfg.jobs} at a time on this machine.",
        *([f"Settings of all runs: {' '.join(cfg.overrides)}."] if cfg.overrides else []),
    ]
