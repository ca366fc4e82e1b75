"""Compare super-resolution methods on the same pairs, and measure the MAE's gain.

DIR/data                simulated packed set of pairs, with the truth DIR/runs/<name>
ordinary runs of `lensdist train`; DIR/logs, their messages DIR/baselines           scores of each
test image by methods that lensdist does not train DIR/results.{md,json}   the table
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.data import simulated_set
from benchmarks.rivals.edsr import train_edsr
from experiments import baselines
from experiments.runs import IMAGE_SCORES, Job, check_presets, job, notes, run_all
from experiments.scores import kept
from experiments.settings import SuperResolutionTable
from lensdist.data.config import DataConfig
from lensdist.data.dataset import PackedSet
from lensdist.data.subset import View
from lensdist.metrics import super_resolution
from lensdist.metrics.images import write_images
from lensdist.metrics.report import write_results
from lensdist.metrics.seeds import paired_difference
from lensdist.models import resample
from lensdist.sim.config import SimConfig

BEST, RANDOM, REFERENCE = "best", "best, random encoder", "reference"
TRUTH = "best, learning the truth"
MAE, REFERENCE_MAE = "mae", "reference mae"
PRESETS = {
    size: {MAE: mae, REFERENCE_MAE: theirs, REFERENCE: recipe}
    | dict.fromkeys((BEST, RANDOM, TRUTH), best)
    for size, mae, best, theirs, recipe in (
        ("small", "mae/pairs-small.yaml", "sr/small.yaml", "mae/small-reference.yaml",
         "sr/small-reference.yaml"),
        ("full", "mae/pairs.yaml", "sr/best.yaml", "mae/reference.yaml", "sr/reference.yaml"),
    )
}  # fmt: skip
# Channels, blocks; small: about the training time of `best`; full: the paper's baseline.
EDSR = {"small": (16, 4), "full": (64, 16)}
EDSR_RATE = {"small": 4e-3, "full": 1e-4}  # small: the best of 1, 2 and 4e-3; full: the paper's
BATCH = {"small": 4, "full": 16}  # of `best` and EDSR
_DATA_SEED = 1
_NOISELESS = ("learn=truth", "model.exact_means=false")
_NEVER = "train.eval_every_epochs=1000000000"
_CHUNK = 64  # images at a time

Scores = dict[str, Tensor]
Enlarge = Callable[[Tensor], Tensor]


def make(cfg: SuperResolutionTable) -> Path:
    """Run what is not finished yet, and return the path of `results.md`.

    Raises:
        UserError: the presets do not exist, or `cfg.out` holds a benchmark of other settings.
        RunError: a run failed.
        StoppedError: a run was told to stop and has saved.
    """
    check_presets(cfg, PRESETS[cfg.size].values())
    sim = SimConfig(family="sr")
    packed = simulated_set(cfg.out / "data", sim, cfg.per_class, _DATA_SEED, truth=True)
    run_all(list(_pretraining(cfg).values()), cfg.jobs, "pretraining")
    jobs = dict(_training(cfg))
    run_all(list(jobs.values()), cfg.jobs, "super-resolution")
    rows = [_row(name, None, [scores]) for name, scores in _untrained(cfg, packed)]
    most = cfg.trained_on[-1]
    rows.append(_row("EDSR", most, [_edsr(cfg, packed, most)]))
    for method in (REFERENCE, RANDOM, BEST, TRUTH):
        for n in cfg.trained_on:
            runs = [one for (m, pairs, _), one in jobs.items() if (m, pairs) == (method, n)]
            if not runs:
                continue
            row = _row(method, n, [_scores(run) for run in runs])
            row |= runs[0].counts
            row["seconds"] = sum(run.record["seconds"] for run in runs) / len(runs)
            if method == BEST:
                random = [jobs[RANDOM, n, seed] for seed in range(len(runs))]
                gain = paired_difference(
                    torch.stack([_scores(run)["psnr"] for run in runs]),
                    torch.stack([_scores(run)["psnr"] for run in random]),
                )
                row |= {"mae_adds": gain["difference"], "mae_adds_ci": gain["ci"]}
            rows.append(row)
    n = len(packed.indices("test"))
    return write_results(cfg.out, rows, "Super-resolution", [*_notes(cfg, n), *notes(cfg)])


# ---- runs


def _job(cfg: SuperResolutionTable, preset: str, name: str, *words: str, **more: Any) -> Job:
    return job(cfg, PRESETS[cfg.size][preset], "", name, *words, **more)


def _pretraining(cfg: SuperResolutionTable) -> dict[str, Job]:
    """Return the MAEs: one trained on the LR images of all training pairs, and the recipe's."""
    mae = _job(cfg, MAE, MAE, data=cfg.out / "data")
    return {MAE: mae, REFERENCE_MAE: _job(cfg, REFERENCE_MAE, REFERENCE_MAE)}


def _training(cfg: SuperResolutionTable) -> Iterator[tuple[tuple[str, int, int], Job]]:
    """Yield the longest run first, then all methods with the same number of pairs together."""
    most, maes = cfg.trained_on[-1], _pretraining(cfg)
    mae = str(maes[MAE].run)

    def of(
        method: str, n: int, seed: int, encoder: str, *more: str
    ) -> tuple[tuple[str, int, int], Job]:
        words = (f"data.train_images={n}", f"seed={seed}", f"encoder={encoder}", *more)
        name, data = f"{method} n{n} s{seed}", cfg.out / "data"
        return (method, n, seed), _job(cfg, method, name, *words, data=data, test=True)

    # The recipe keeps its own length, and its choice among epochs, by a tenth of the pairs.
    chooses = (f"data.choose_with={max(1, most // 10)}", "train.select_from=best")
    yield of(REFERENCE, most, 0, str(maes[REFERENCE_MAE].run), *chooses)
    for n in cfg.trained_on:
        # The last weights count: pairs that choose are pairs, too.
        steps = (
            f"train.max_steps={cfg.steps_of(n)}",
            f"train.global_batch={BATCH[cfg.size]}",
            f"checkpoint.every_steps={cfg.steps_of(n)}",
            _NEVER,
        )
        for seed in range(cfg.seeds_of(n)):
            yield of(BEST, n, seed, mae, *steps)
            yield of(RANDOM, n, seed, "null", *steps)
    yield of(TRUTH, most, 0, mae, *steps, *_NOISELESS)


def _scores(run: Job) -> Scores:
    return kept(run.run / IMAGE_SCORES)


# ---- what lensdist does not train


def _untrained(cfg: SuperResolutionTable, packed: PackedSet) -> Iterator[tuple[str, Scores]]:
    for name, enlarge in baselines.INTERPOLATIONS.items():
        yield name, _kept(cfg, packed, name, _known(partial(enlarge, factor=2)))
    yield "bicubic moved to LR's means", _kept(cfg, packed, "bicubic-means", _known(_moved))
    most = cfg.trained_on[-1]

    def linear() -> Enlarge:
        pairs = _pairs(cfg, packed, most)
        return baselines.LinearFilter.fit(pairs["image"], pairs["target"], 2)

    yield "linear 7x7", _kept(cfg, packed, f"linear-n{most}", linear)
    yield "oracle", _kept(cfg, packed, "oracle", None)


def _pairs(cfg: SuperResolutionTable, packed: PackedSet, n: int) -> Scores:
    """Return the same pairs as runs of seed 0."""
    few = DataConfig(path=packed.path, train_images=n)
    view = View(packed, "train", few, 0, torch.device("cpu"))
    return view.gather(np.arange(n))


def _known(enlarge: Enlarge) -> Callable[[], Enlarge]:
    return lambda: enlarge


def _moved(lr: Tensor) -> Tensor:
    moved: Tensor = resample.with_means(resample.bicubic(lr, 2), lr)
    return moved


def _edsr(cfg: SuperResolutionTable, packed: PackedSet, n: int) -> Scores:
    device = "cuda" if torch.cuda.is_available() else "cpu"

    steps = cfg.steps_of(n)
    width, blocks = EDSR[cfg.size]

    def trained() -> Enlarge:
        pairs = _pairs(cfg, packed, n)
        model = train_edsr(
            pairs["image"], pairs["target"], steps=steps, batch=BATCH[cfg.size], seed=0,
            width=width, blocks=blocks, rate=EDSR_RATE[cfg.size], device=device,
        )  # fmt: skip
        return lambda x: model(x.to(device)).cpu()

    return _kept(cfg, packed, f"edsr-{width}-{blocks}-n{n}-steps{steps}", trained)


@torch.no_grad()
def _kept(
    cfg: SuperResolutionTable,
    packed: PackedSet,
    name: str,
    make: Callable[[], Enlarge] | None,
) -> Scores:
    """Return scores of each test image, stored in a file; without `make` those of the oracle."""
    path = cfg.out / "baselines" / f"{name}-{packed.manifest.fingerprint[:8]}.safetensors"
    if path.exists():
        return kept(path)
    with torch.enable_grad():  # `make` may train an EDSR
        enlarge = None if make is None else make()
    parts: list[Scores] = []
    for rows in torch.from_numpy(packed.indices("test")).split(_CHUNK):  # type: ignore[no-untyped-call]
        batch = packed.gather(rows)
        lr, truth = batch["image"], batch["truth"]
        drawn = super_resolution.oracle(truth, lr) if enlarge is None else enlarge(lr)
        parts.append(super_resolution.of_images(drawn, lr, batch["target"], truth=truth))
    scores = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    write_images(path, scores)
    return scores


# ---- the table


def _row(method: str, pairs: int | None, seeds: list[Scores]) -> dict[str, Any]:
    each = {key: torch.stack([one[key] for one in seeds]) for key in seeds[0]}
    bicubic = each["psnr_bicubic"]
    gain = paired_difference(each["psnr"], bicubic)
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
        "and used once. PSNR with a data range of 1, mean over images.",
        "`gap`: (MSE - oracle's) / (bicubic's - oracle's), 1 for bicubic; the oracle has the "
        "lens without noise and moves it to LR's means. Below 0: better than that oracle, which "
        "shares a block's excess evenly.",
        "`psnr to truth`: against HR without its noise. LR's own noise is in its means, so what "
        "comes close to HR keeps it; bicubic blurs some of it away.",
        f"`best`: configs/{presets[BEST]}, {steps} steps of {BATCH[cfg.size]} by the number of "
        f"pairs, the last weights; its MAE (configs/{presets[MAE]}) saw the LR images of "
        "all training pairs. `mae adds`: dB over the same network from a random encoder, same "
        "pairs and order.",
        f"`reference`: configs/{presets[REFERENCE]}, from configs/"
        f"{presets[REFERENCE_MAE]} (Model II without substructure); a tenth of its pairs chose "
        "among its epochs (`chosen on`).",
        "`best, learning the truth`: its target is HR without noise, which simulations alone have, "
        "and LR's means are not kept, for they hold noise.",
        f"EDSR: {EDSR[cfg.size][0]} channels, {EDSR[cfg.size][1]} blocks, L1, a plain loop of "
        f"{cfg.steps_of(cfg.trained_on[-1]):,} steps of {BATCH[cfg.size]}. Linear 7x7: least "
        "squares on the same pairs.",
        "Intervals are 95 %, over seeds (pairs, order, initial weights) and test images, paired.",
    ]
