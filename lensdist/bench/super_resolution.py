"""Super-resolution: what the MAE adds, and what everything else reaches on the same pairs.

DIR/data                simulated packed set of pairs, with the truth
DIR/runs/<name>         ordinary runs of `lensdist train`; DIR/logs, what they said
DIR/baselines           scores of each test image, of what is not trained by lensdist
DIR/results.{md,json}   the table
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lensdist.bench import baselines
from lensdist.bench.runs import IMAGE_SCORES, Job, run_all
from lensdist.bench.scores import keep, kept, simulated_set
from lensdist.bench.settings import SuperResolutionTable
from lensdist.data.config import DataConfig
from lensdist.data.dataset import PackedSet
from lensdist.data.subset import View
from lensdist.errors import UserError
from lensdist.evaluate import super_resolution
from lensdist.evaluate.bootstrap import paired_bootstrap
from lensdist.evaluate.report import write_results
from lensdist.models import resample
from lensdist.phases import completed
from lensdist.sim.config import SimConfig

BEST, RANDOM, REFERENCE = "best", "best, random encoder", "reference"
TRUTH = "best, learning the truth"
PRESETS = {
    "small": {
        "mae": "pairs-small.yaml",
        BEST: "small.yaml",
        RANDOM: "small.yaml",
        TRUTH: "small.yaml",
        "reference mae": "small-reference.yaml",
        REFERENCE: "small-reference.yaml",
    },
    "full": {
        "mae": "pairs.yaml",
        BEST: "best.yaml",
        RANDOM: "best.yaml",
        TRUTH: "best.yaml",
        "reference mae": "reference.yaml",
        REFERENCE: "reference.yaml",
    },
}
# Channels, blocks; small: about the seconds of `best`, full: the paper's baseline.
EDSR = {"small": (16, 4), "full": (64, 16)}
EDSR_RATE = {"small": 4e-3, "full": 1e-4}  # small: the best of 1, 2 and 4e-3; full: the paper's
BATCH = {"small": 4, "full": 16}  # of `best` and EDSR
_DATA_SEED = 1
_NOISELESS = ("learn=truth", "model.exact_means=false")
_NEVER = "train.eval_every_epochs=1000000000"
_CHUNK = 64  # images at a time

Scores = dict[str, Tensor]
Enlarge = Callable[[Tensor], Tensor]


def super_resolution_table(cfg: SuperResolutionTable) -> Path:
    """Run what is not finished yet; returns the path of `results.md`.

    Raises:
        UserError: the presets are not there, or `cfg.out` holds a benchmark of other settings.
        RunError: a run failed.
        StoppedError: a run was asked to stop and has saved.
    """
    presets = PRESETS[cfg.size]
    for name, preset in presets.items():
        if not _preset(cfg, name).is_file():
            raise UserError(f"{preset} is not there; give --configs")
    sim = SimConfig(family="sr")
    packed = simulated_set(cfg.out / "data", sim, cfg.per_class, _DATA_SEED, truth=True)
    run_all(list(_pretraining(cfg)), cfg.jobs, "pretraining")
    jobs = dict(_training(cfg))
    run_all(list(jobs.values()), cfg.jobs, "super-resolution")
    rows = [_row(name, None, [scores]) for name, scores in _untrained(cfg, packed)]
    most = cfg.trained_on[-1]
    rows.append(_row("EDSR", most, [_edsr(cfg, packed, most)]))
    for method in (REFERENCE, RANDOM, BEST, TRUTH):
        for n in cfg.trained_on:
            runs = [job for (m, pairs, _), job in jobs.items() if (m, pairs) == (method, n)]
            if not runs:
                continue
            row = _row(method, n, [_scores(job) for job in runs])
            row["seconds"] = sum(_record(job)["seconds"] for job in runs) / len(runs)
            if method == BEST:
                random = [jobs[RANDOM, n, seed] for seed in range(len(runs))]
                gain = paired_bootstrap(
                    torch.stack([_scores(job)["psnr"] for job in runs]),
                    torch.stack([_scores(job)["psnr"] for job in random]),
                )
                row |= {"mae_adds": gain["difference"], "mae_adds_ci": gain["ci"]}
            rows.append(row)
    n = len(packed.indices("test"))
    return write_results(cfg.out, rows, "Super-resolution", _notes(cfg, n))


# ---- runs


def _preset(cfg: SuperResolutionTable, name: str) -> Path:
    task = "mae" if name.endswith("mae") else "sr"
    return cfg.configs / task / PRESETS[cfg.size][name]


def _run(cfg: SuperResolutionTable, name: str) -> Path:
    return cfg.out / "runs" / name.replace(",", "").replace(" ", "-")


def _job(cfg: SuperResolutionTable, preset: Path, name: str, *words: str, test: bool) -> Job:
    run = _run(cfg, name)
    argv = (f"--config={preset}", *cfg.overrides, *words, f"run.dir={run}")
    log = cfg.out / "logs" / f"{run.name}.log"
    return Job(run, argv, log, cfg.out / "data" if test else None)


def _pretraining(cfg: SuperResolutionTable) -> Iterator[Job]:
    """The MAEs: on the LR images of all training pairs, and the recipe's on its own images."""
    data = f"data.path={cfg.out / 'data'}"
    yield _job(cfg, _preset(cfg, "mae"), "mae", data, test=False)
    yield _job(cfg, _preset(cfg, "reference mae"), "reference mae", test=False)


def _training(cfg: SuperResolutionTable) -> Iterator[tuple[tuple[str, int, int], Job]]:
    """The longest run first, then all methods of as many pairs together."""
    most, mae = cfg.trained_on[-1], str(_run(cfg, "mae"))

    def job(method: str, n: int, seed: int, encoder: str, *more: str) -> Job:
        words = (f"data.path={cfg.out / 'data'}", f"data.train_images={n}", f"seed={seed}")
        name = f"{method} n{n} s{seed}"
        more = (f"encoder={encoder}", *more)
        return _job(cfg, _preset(cfg, method), name, *words, *more, test=True)

    # The recipe keeps its own length, and its choice among epochs.
    yield (REFERENCE, most, 0), job(REFERENCE, most, 0, str(_run(cfg, "reference mae")))
    for n in cfg.trained_on:
        # The last weights count: to choose by validation takes more pairs than there are to learn.
        steps = (
            f"train.max_steps={cfg.steps_of(n)}",
            f"train.global_batch={BATCH[cfg.size]}",
            f"checkpoint.every_steps={cfg.steps_of(n)}",
        )
        for seed in range(cfg.seeds_of(n)):
            yield (BEST, n, seed), job(BEST, n, seed, mae, *steps, _NEVER)
            yield (RANDOM, n, seed), job(RANDOM, n, seed, "null", *steps, _NEVER)
    yield (TRUTH, most, 0), job(TRUTH, most, 0, mae, *steps, _NEVER, *_NOISELESS)


def _record(job: Job) -> dict[str, Any]:
    record = completed(job.run)  # believe no run whose files were altered since
    assert record is not None
    return record


def _scores(job: Job) -> Scores:
    return kept(job.run / IMAGE_SCORES)


# ---- what lensdist does not train


def _untrained(cfg: SuperResolutionTable, packed: PackedSet) -> Iterator[tuple[str, Scores]]:
    for name, enlarge in baselines.INTERPOLATIONS.items():
        twice = partial(enlarge, factor=2)
        yield name, _kept(cfg, packed, name, partial(_same, twice))

    def with_means() -> Enlarge:
        return lambda x: resample.with_means(resample.bicubic(x, 2), x)

    yield "bicubic moved to LR's means", _kept(cfg, packed, "bicubic-means", with_means)
    most = cfg.trained_on[-1]

    def linear() -> Enlarge:
        pairs = _pairs(cfg, packed, most)
        return baselines.LinearFilter.fit(pairs["image"], pairs["target"], 2)

    yield "linear 7x7", _kept(cfg, packed, f"linear-n{most}", linear)
    yield "oracle", _kept(cfg, packed, "oracle", None)


def _pairs(cfg: SuperResolutionTable, packed: PackedSet, n: int) -> Scores:
    """The very pairs that runs of seed 0 have."""
    few = DataConfig(path=packed.path, train_images=n)
    view = View(packed, "train", few, 0, torch.device("cpu"))
    return view.gather(np.arange(n))


def _same(enlarge: Enlarge) -> Enlarge:
    return enlarge


def _edsr(cfg: SuperResolutionTable, packed: PackedSet, n: int) -> Scores:
    device = "cuda" if torch.cuda.is_available() else "cpu"

    steps = cfg.steps_of(n)
    width, blocks = EDSR[cfg.size]

    def trained() -> Enlarge:
        pairs = _pairs(cfg, packed, n)
        model = baselines.train_edsr(
            pairs["image"],
            pairs["target"],
            steps=steps,
            batch=BATCH[cfg.size],
            seed=0,
            width=width,
            blocks=blocks,
            rate=EDSR_RATE[cfg.size],
            device=device,
        )
        return lambda x: model(x.to(device)).cpu()

    return _kept(cfg, packed, f"edsr-{width}-{blocks}-n{n}-steps{steps}", trained)


@torch.no_grad()
def _kept(
    cfg: SuperResolutionTable,
    packed: PackedSet,
    name: str,
    make: Callable[[], Enlarge] | None,
) -> Scores:
    """Scores of each test image, kept in a file; without `make` those of the oracle."""
    path = cfg.out / "baselines" / f"{name}-{packed.manifest.fingerprint[:8]}.safetensors"
    if path.exists():
        return kept(path)
    with torch.enable_grad():  # an EDSR is trained here
        enlarge = None if make is None else make()
    parts: list[Scores] = []
    for rows in torch.from_numpy(packed.indices("test")).split(_CHUNK):  # type: ignore[no-untyped-call]
        batch = packed.gather(rows)
        lr, truth = batch["image"], batch["truth"]
        drawn = super_resolution.oracle(truth, lr) if enlarge is None else enlarge(lr)
        parts.append(super_resolution.of_images(drawn, lr, batch["target"], truth=truth))
    scores = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    keep(path, scores)
    return scores


# ---- the table


def _row(method: str, pairs: int | None, seeds: list[Scores]) -> dict[str, Any]:
    each = {key: torch.stack([one[key] for one in seeds]) for key in seeds[0]}
    bicubic = each["psnr_bicubic"]
    gain = paired_bootstrap(each["psnr"], bicubic)
    gap = super_resolution.gap(each["mse"], each["mse_bicubic"], each["mse_oracle"])
    row: dict[str, Any] = {
        "method": method,
        "pairs": pairs,
        "runs": len(seeds) if pairs else None,
        "psnr": each["psnr"].mean().item(),
        "over_bicubic": gain["difference"],
        "over_bicubic_ci": gain["ci"],
        "ssim": each["ssim"].mean().item(),
        "mse_1e-6": each["mse"].mean().item() * 1e6,
        "gap": gap["gap"],
        "gap_ci": gap["ci"],
        "psnr_to_truth": -10 * each["mse_truth"].log10().mean().item(),
    }
    for name in ("coverage_68", "coverage_95"):
        if name in each:
            row[name] = each[name].mean().item()
    return row


def _notes(cfg: SuperResolutionTable, n: int) -> list[str]:
    presets = PRESETS[cfg.size]
    steps = ", ".join(f"{cfg.steps_of(pairs):,}" for pairs in cfg.trained_on)
    return [
        f"Simulated pairs 75 -> 150 px of task VI.B; n = {n:,} test pairs, the same for all rows "
        "and looked at once. PSNR with a data range of 1, mean over images.",
        "`gap`: (MSE - oracle's) / (bicubic's - oracle's), 1 for bicubic; the oracle knows the "
        "lens without noise and moves it to LR's means. Below 0: better than that oracle, which "
        "shares a block's excess evenly.",
        "`psnr to truth`: against HR without its noise. LR's own noise is in its means, so what "
        "comes close to HR keeps it; bicubic blurs some of it away.",
        f"`best`: configs/sr/{presets[BEST]}, {steps} steps of {BATCH[cfg.size]} by the number of "
        f"pairs, the last weights; its MAE (configs/mae/{presets['mae']}) saw the LR images of "
        "all training pairs. `mae adds`: dB over the same network from a random encoder, same "
        "pairs and order.",
        f"`reference`: configs/sr/{presets[REFERENCE]}, from configs/mae/"
        f"{presets['reference mae']} (Model II without substructure); validation chose among its "
        "epochs.",
        "`best, learning the truth`: its target is HR without noise, which simulations alone have, "
        "and LR's means are not kept, for they hold noise.",
        f"EDSR: {EDSR[cfg.size][0]} channels, {EDSR[cfg.size][1]} blocks, L1, a plain loop of "
        f"{cfg.steps_of(cfg.trained_on[-1]):,} steps of {BATCH[cfg.size]}. Linear 7x7: least "
        "squares on the same pairs.",
        "Intervals are 95 %, over seeds (pairs, order, initial weights) and test images, paired.",
        f"Seconds are a run's last life, of {cfg.jobs} at a time on this machine.",
        *([f"Settings of all runs: {' '.join(cfg.overrides)}."] if cfg.overrides else []),
    ]
