"""Score the search for one class of two, such as lenses among other galaxies.

Purity (precision) is the share of the images above a threshold that are of the class; completeness
(recall) is the share of the class that is above it. Every function takes scores (N,), whose order
counts, and which images are of the class, (N,) bool. What is not defined is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensdist.metrics.bootstrap import average_precision_interval, wilson
from lensdist.metrics.drawing import COLOURS, GREY, panels, save
from lensdist.utils.files import printable

_POINTS = 512  # of a curve


def scores(odds: Tensor, truth: Tensor, threshold: float) -> dict[str, Any]:
    """Return average precision, and purity, completeness and F1 at a threshold.

    Average precision is the sum over thresholds of purity times the gain in completeness; its value
    for guesses is the share of the class, `prevalence`.

    Args:
        odds: log-odds.
        truth: which images are of the class.
        threshold: a probability.
    """
    purity, completeness, _ = _steps(odds, truth)
    positives, chosen = int(truth.sum()), odds >= math.log(threshold / (1 - threshold))
    hits = int((chosen & truth).sum())
    called = int(chosen.sum())
    return {
        "average_precision": _area(purity, completeness),
        "prevalence": positives / len(truth),
        "threshold": threshold,
        "purity": hits / called if called else math.nan,
        "purity_ci": wilson(hits, called),
        "completeness": hits / positives if positives else math.nan,
        "completeness_ci": wilson(hits, positives),
        "f1": 2 * hits / (called + positives) if positives else math.nan,
    }


def intervals(
    odds: Tensor, truth: Tensor, *, seed: int = 0, resamples: int = 1000
) -> dict[str, Any]:
    """Return `average_precision_ci`, a 95 % interval bootstrapped over images."""
    found = average_precision_interval(odds.cpu(), truth.cpu(), seed=seed, resamples=resamples)
    return {"average_precision_ci": found}


def best_threshold(odds: Tensor, truth: Tensor) -> float:
    """Return the probability at which F1 is highest; 0.5 if no image is of the class.

    It lies half-way, in log-odds, to the next lower score, so that rounding changes nothing.
    """
    purity, completeness, at = _steps(odds, truth)
    f1 = 2 * purity * completeness / (purity + completeness)
    if not f1.isfinite().any():
        return 0.5
    best = int(f1.nan_to_num(-1).argmax())
    below = at[best + 1] if best + 1 < len(at) else at[best] - 1
    middle = float(torch.sigmoid((at[best] + below) / 2))
    return min(max(middle, 1e-9), 1 - 1e-9)


def curve(odds: Tensor, truth: Tensor) -> dict[str, list[float]]:
    """Return lists of `purity`, `completeness` and `threshold` (a probability), from the highest.

    At most 512 points are kept, evenly along completeness.
    """
    purity, completeness, at = _steps(odds, truth)
    if not completeness.isfinite().all():
        return {"purity": [], "completeness": [], "threshold": []}
    wanted = torch.linspace(0, 1, _POINTS, dtype=torch.float64)
    kept = torch.searchsorted(completeness, wanted).clamp(max=len(at) - 1)
    kept = kept[torch.cat([kept[:1] >= 0, kept.diff() > 0])]  # each once
    return {
        "purity": purity[kept].tolist(),
        "completeness": completeness[kept].tolist(),
        "threshold": torch.sigmoid(at[kept]).tolist(),
    }


def figure(
    path: Path, curve: Mapping[str, Sequence[float]], found: Mapping[str, Any], title: str
) -> Path:
    """Draw purity against completeness, with the threshold that predictions use."""
    fig, (ax,) = panels(1, 4.6, 4.4, f"{printable(title)} (n = {found['n']:,})")
    name = f"average precision {found['average_precision']:.4f}"
    ax.step(curve["completeness"], curve["purity"], where="pre", color=COLOURS[0], label=name)
    ax.axhline(found["prevalence"], color=GREY, lw=1, ls=":", label="guesses")
    mark = f"threshold {found['threshold']:.3g}"
    ax.plot(found["completeness"], found["purity"], "o", ms=6, color=COLOURS[1], label=mark)
    ax.set(xlabel="completeness", ylabel="purity", xlim=(0, 1.02), ylim=(0, 1.02))
    ax.legend(loc="lower left", frameon=False, fontsize=8)
    return save(fig, path)


def _steps(odds: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return purity, completeness and score (T,) of each threshold, from the highest score."""
    order = odds.cpu().double().argsort(descending=True, stable=True)
    at, hit = odds.cpu().double()[order], truth.cpu()[order].double()
    last = torch.ones(len(at), dtype=torch.bool)
    last[:-1] = at.diff() < 0  # the last of each group of equal scores
    hits, called = hit.cumsum(0)[last], torch.arange(1, len(at) + 1)[last]
    return hits / called, hits / hit.sum(), at[last]


def _area(purity: Tensor, completeness: Tensor) -> float:
    gain = completeness.diff(prepend=completeness.new_zeros(1))
    return float((purity * gain).sum())
