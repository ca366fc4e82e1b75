"""Compare the common task's presets: the share of `reference`'s errors that `best` avoids.

DIR/data                simulated packed set DIR/runs/<name>         ordinary runs of `lensdist
train`; DIR/logs, their messages DIR/results.{md,json}   accuracy by training images, each preset
against `reference`

Both presets of a row have the same training, validation and test images.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness.data import simulated_set
from experiments.runs import Job, check_presets, job, notes, run_all
from experiments.scores import correct, over_seeds
from experiments.settings import CommonTable
from lensdist.metrics.report import write_results
from lensdist.metrics.seeds import error_reduction, paired_difference
from lensdist.sim.config import SimConfig
from lensdist.utils.sealed import read_json

REFERENCE = "reference"
# Each row of the table: a preset, and settings on top of it. Without its fit `best` gets images of
# the size of the fit's residuals.
_DATA_SEED = 1  # another set than the one used to choose `best`
_NO_FIT = ("preprocess.scale=minmax", "model.resize=75")
METHODS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    size: {
        REFERENCE: (reference, ()),
        "best": (best, ()),
        "best without the fit": (best, _NO_FIT),
    }
    for size, reference, best in (
        ("small", "common/small-reference.yaml", "common/small.yaml"),
        ("full", "common/reference.yaml", "common/best.yaml"),
    )
}


def make(cfg: CommonTable) -> Path:
    """Run what is not finished yet, and return the path of `results.md`.

    Raises:
        UserError: the presets do not exist, or `cfg.out` holds a benchmark of other settings.
        RunError: a run failed.
        StoppedError: a run was told to stop and has saved.
    """
    methods = {name: how for name, how in METHODS[cfg.size].items() if name in cfg.methods}
    check_presets(cfg, [preset for preset, _ in methods.values()])
    data = cfg.out / "data"
    packed = simulated_set(data, SimConfig(family="common"), cfg.per_class, _DATA_SEED)
    jobs: dict[tuple[int, str, int], Job] = {}
    for n, seed, method in product(cfg.trained_on, range(cfg.seeds), methods):
        preset, settings = methods[method]
        words = [*settings, f"data.labels_per_class={n // 3}", f"seed={seed}"]
        if method == REFERENCE:  # the recipe chooses among its epochs: by a tenth of its images
            words += [f"data.choose_with={max(1, n // 30)}", "train.select_from=best"]
        name = f"{method} n{n} s{seed}"
        jobs[n, method, seed] = job(cfg, preset, "", name, *words, data=data, test=True)
    run_all(list(jobs.values()), cfg.jobs, "common task")
    truth = torch.from_numpy(packed.labels[packed.indices("test")])
    rows = []
    for n in cfg.trained_on:
        of_reference: Tensor | None = None
        for method in methods:
            runs = [jobs[n, method, seed] for seed in range(cfg.seeds)]
            logits = torch.stack([run.logits for run in runs])
            row = {
                "images": n,
                "method": method,
                **runs[0].counts,
                "init": read_json(runs[0].run / "export" / "config.json")["init"],
                **over_seeds(logits, truth),
                "seconds": sum(run.record["seconds"] for run in runs) / len(runs),
            }
            right = correct(logits, truth)
            if method == REFERENCE:
                of_reference = right
            elif of_reference is not None:
                gain = paired_difference(right, of_reference)
                fewer = error_reduction(right, of_reference)
                row |= {"gain": gain["difference"], "gain_ci": gain["ci"]}
                row |= {"errors_avoided": fewer["reduction"], "errors_avoided_ci": fewer["ci"]}
            rows.append(row)
    return write_results(cfg.out, rows, "Common task", [*_notes(cfg, len(truth)), *notes(cfg)])


def _notes(cfg: CommonTable, n: int) -> list[str]:
    names = dict.fromkeys(preset for preset, _ in METHODS[cfg.size].values())
    presets = ", ".join(f"configs/{name}" for name in names)
    return [
        f"Simulated common task, 150x150, {cfg.per_class:,} images per class (each run draws its "
        f"own from those for training); test n = {n:,} images, used once.",
        f"Presets: {presets}. `images` includes those that choose weights: `reference` takes its "
        "best epoch by a tenth of them, as the recipe does; all others take the last averaged "
        "weights, and nothing chooses. `lowest` is the worst seed's accuracy.",
        "`best without the fit`: its network and schedule on the images as they are.",
        f"{cfg.seeds} seed(s): training images, order, initial weights. Intervals are 95 %, over "
        "seeds and test images; `gain` (in accuracy) and `errors avoided` are paired with "
        "`reference` on the same images.",
    ]
