"""The common task: how many of `reference`'s errors `best` does away with.

DIR/data                simulated packed set
DIR/runs/<name>         ordinary runs of `lensdist train`; DIR/logs, what they said
DIR/results.{md,json}   accuracy by training images, each preset against `reference`

Both presets of a row have the same training, validation and test images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lensdist.bench.runs import LOGITS, Job, run_all
from lensdist.bench.scores import correct, over_seeds, simulated_set
from lensdist.bench.settings import CommonTable
from lensdist.errors import UserError
from lensdist.evaluate.bootstrap import error_reduction, paired_bootstrap
from lensdist.evaluate.report import write_results
from lensdist.phases import completed
from lensdist.sim.config import SimConfig

REFERENCE = "reference"
PRESETS = {
    "small": {REFERENCE: "small-reference.yaml", "best": "small.yaml"},
    "full": {REFERENCE: "reference.yaml", "best": "best.yaml"},
}


def common_table(cfg: CommonTable) -> Path:
    """Run what is not finished yet; returns the path of `results.md`.

    Raises:
        UserError: the presets are not there, or `cfg.out` holds a benchmark of other settings.
        RunError: a run failed.
        StoppedError: a run was asked to stop and has saved.
    """
    for preset in PRESETS[cfg.size].values():
        if not (cfg.configs / "common" / preset).is_file():
            raise UserError(f"{cfg.configs / 'common' / preset} is not there; give --configs")
    packed = simulated_set(cfg.out / "data", SimConfig(family="common"), cfg.per_class)
    jobs = {
        (n, method, seed): _job(cfg, n, method, seed)
        for n in cfg.trained_on
        for seed in range(cfg.seeds)
        for method in PRESETS[cfg.size]
    }
    run_all(list(jobs.values()), cfg.jobs, "common task")
    records = {key: _record(job) for key, job in jobs.items()}
    truth = torch.from_numpy(packed.labels[packed.indices("test")])
    rows = []
    for n in cfg.trained_on:
        of_reference: Tensor | None = None
        for method in PRESETS[cfg.size]:
            runs = [records[n, method, seed] for seed in range(cfg.seeds)]
            logits = torch.stack([run["logits"] for run in runs])
            row = {
                "training_images": n,
                "preset": method,
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
    run = cfg.out / "runs" / f"{method}-n{n}-s{seed}"
    words = (
        f"--config={cfg.configs / 'common' / PRESETS[cfg.size][method]}",
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
    export = json.loads((job.run / "export" / "config.json").read_text())
    logits = torch.from_numpy(np.load(job.run / LOGITS, allow_pickle=False))
    return {"seconds": record["seconds"], "init": export["init"], "logits": logits}


def _notes(cfg: CommonTable, n: int) -> list[str]:
    presets = ", ".join(f"configs/common/{name}" for name in PRESETS[cfg.size].values())
    return [
        f"Simulated common task, 150x150, {cfg.per_class:,} images per class (8 in 10 for "
        f"training, of which each run draws its own); test n = {n:,} images, looked at once.",
        f"Presets: {presets}. Validation ({n:,} images) chose the weights of both.",
        f"{cfg.seeds} seeds: training images, order and initial weights. Intervals are 95 %, over "
        "seeds and test images; `gain` (in accuracy) and `errors avoided` are paired with "
        "`reference` on the same images.",
        f"Seconds are a run's, of {cfg.jobs} at a time on this machine.",
    ]
