"""95 % intervals, from random numbers that are keyed: the same outputs give the same interval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lensdist.utils import rng
from lensdist.utils.errors import RunError

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point
_CHUNK = 1 << 20  # numbers drawn at once, so that memory does not grow with the split: 8 MiB


def wilson(hits: int, n: int) -> list[float]:
    """Score interval of a proportion (Wilson 1927, doi:10.2307/2276774); NaN when n = 0."""
    if n == 0:
        return [math.nan, math.nan]
    p, zz = hits / n, Z95**2 / n
    middle = (p + zz / 2) / (1 + zz)
    half = Z95 / (1 + zz) * math.sqrt(p * (1 - p) / n + zz / (4 * n))
    return [max(0.0, middle - half), min(1.0, middle + half)]


def paired_bootstrap(
    a: Tensor, b: Tensor, *, seed: int = 0, resamples: int = 2000
) -> dict[str, Any]:
    """Difference of two models on the same samples, with its interval (Efron 1979, percentiles).

    Pairing removes what makes a sample hard for both, so far smaller differences can be seen
    than by comparing two intervals. With several seeds, seeds and samples are both resampled.

    Args:
        a: (N,) or (S, N): a score for each sample, such as correct (0 or 1) or PSNR, of S seeds.
        b: the same samples in the same order under the other model.
        seed: names the resamples.
        resamples: how many.

    Returns:
        `difference` (mean of a - b), `ci` [low, high], `n`, `seeds`.

    Raises:
        RunError: no sample, or a score that is not finite.
        ValueError: the shapes differ.
    """
    a, b = _paired(a, b)
    d = a - b
    (draws,) = _resampled([d], seed, resamples)
    n = d.shape[1]
    return {"difference": d.mean().item(), "ci": _percentiles(draws), "n": n, "seeds": len(d)}


def error_reduction(
    a_correct: Tensor, b_correct: Tensor, *, seed: int = 0, resamples: int = 2000
) -> dict[str, Any]:
    """The share of b's errors that a does away with, 1 - error(a) / error(b), with its interval.

    Paired as `paired_bootstrap`, with the same resamples. Of a resample without an error of b
    the share does not exist, and it is left out.

    Args:
        a_correct: (N,) or (S, N) 0 or 1, or bool: which samples each of S seeds gets right.
        b_correct: the same samples in the same order under the other model.
        seed: names the resamples.
        resamples: how many.

    Returns:
        `reduction` (0.6: six in ten errors are gone; below 0: more errors; NaN where b makes
        none), `ci` [low, high], `error_a`, `error_b`, `n`, `seeds`.

    Raises:
        RunError, ValueError: as `paired_bootstrap`.
    """
    a, b = _paired(a_correct, b_correct)
    found = paired_ratio(1 - a, 1 - b, seed=seed, resamples=resamples)
    low, high = found["ci"]
    return {
        "reduction": 1 - found["ratio"],
        "ci": [1 - high, 1 - low],
        "error_a": (1 - a).mean().item(),
        "error_b": (1 - b).mean().item(),
        "n": a.shape[1],
        "seeds": len(a),
    }


def paired_ratio(a: Tensor, b: Tensor, *, seed: int = 0, resamples: int = 2000) -> dict[str, Any]:
    """mean(a) / mean(b) of two models on the same samples, with its interval.

    Paired as `paired_bootstrap`, with the same resamples. Of a resample whose mean of b is not
    above 0 the ratio means nothing, and it is left out.

    Args:
        a, b: (N,) or (S, N) of each sample, of S seeds, in any unit.

    Returns:
        `ratio` (NaN where the mean of b is not above 0) and `ci` [low, high].

    Raises:
        RunError, ValueError: as `paired_bootstrap`.
    """
    a, b = _paired(a, b)
    draws_a, draws_b = _resampled([a, b], seed, resamples)
    some = draws_b > 0
    below = b.mean().item()
    return {
        "ratio": a.mean().item() / below if below > 0 else math.nan,
        "ci": _percentiles(draws_a[some] / draws_b[some]),
    }


def _paired(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (S, N) float64 on the CPU, or what is wrong with them."""
    if a.shape != b.shape or a.ndim not in (1, 2):
        raise ValueError(
            "paired scores need one shape, (N,) or (S, N), "
            f"not {tuple(a.shape)} and {tuple(b.shape)}"
        )
    a, b = (each.detach().cpu().double() for each in (a, b))
    a, b = (each if each.ndim == 2 else each[None] for each in (a, b))
    if a.numel() == 0 or not (a.isfinite() & b.isfinite()).all():
        raise RunError("paired scores must be there, and finite")
    return a, b


def _resampled(scores: Sequence[Tensor], seed: int, resamples: int) -> list[Tensor]:
    """(R,) means of each of the scores (S, N), seeds and samples drawn alike for all of them."""
    seeds, n = scores[0].shape
    rows = torch.cat(list(_counts(rng.key(seed, "paired", "seeds"), resamples, seeds)))
    draws: list[list[Tensor]] = [[] for _ in scores]
    first = 0
    for counts in _counts(rng.key(seed, "paired", "samples"), resamples, n):
        of_seeds = rows[first : first + len(counts)]
        for mine, each in zip(draws, scores, strict=True):
            mine.append(((of_seeds @ each) * counts).sum(dim=1) / each.numel())
        first += len(counts)
    return [torch.cat(mine) for mine in draws]


def auc_interval(scores: Tensor, truth: Tensor, *, seed: int, resamples: int) -> list[float]:
    """Interval of the macro AUC: the first of `auc_intervals`."""
    return auc_intervals(scores, truth, seed=seed, resamples=resamples)[0]


def auc_intervals(
    scores: Tensor, truth: Tensor, *, seed: int, resamples: int
) -> tuple[list[float], list[list[float]]]:
    """Intervals of the AUCs, bootstrapped over samples (Efron 1979, percentiles).

    Args:
        scores: (K, N) any order-preserving score of each class.
        truth: (K, N) bool.
        seed: names the resamples.
        resamples: how many.

    Returns:
        [low, high] of the macro AUC, and of each of the K classes'; NaN where it cannot be
        scored. A resample that lacks a class takes the mean over the classes it has.
    """
    classes = []
    for score, positive in zip(scores, truth, strict=True):
        order = score.argsort()
        last = torch.ones(len(order), dtype=torch.bool)
        last[:-1] = score[order].diff() > 0  # the last of each group of equal scores
        classes.append((order, last.nonzero().flatten(), positive[order].double()))
    parts = [
        torch.stack([_weighted_auc(counts, *each) for each in classes])
        for counts in _counts(rng.key(seed, "auc"), resamples, scores.shape[1])
    ]
    draws = torch.cat(parts, dim=1)  # (K, resamples)
    return _percentiles(draws.nanmean(dim=0)), [_percentiles(each) for each in draws]


def calibration_interval(gaps: Tensor, *, seed: int, resamples: int) -> list[float]:
    """Interval of the expected calibration error (basic bootstrap: reflected percentiles).

    Noise in a bin only ever adds to an ECE: the estimate lies too high, and its resamples too
    high once more. Percentiles of them hardly ever hold the true ECE of a nearly calibrated
    model; reflected at the estimate, both shifts go. (Measured on made-up overconfident models of
    known ECE, 150 and 1,000 samples: 0.87 to 0.94 hold it, where percentiles do 0.08 to 0.93;
    0 as the lower end means that the model may be calibrated.) So the interval may lie low
    beside its estimate, or below it.

    Args:
        gaps: (N, bins) accuracy - confidence of each sample in its own bin, 0 in all others.
        seed: names the resamples.
        resamples: how many.
    """
    n = len(gaps)
    estimate = gaps.sum(dim=0).abs().sum().item() / n
    draws = [
        (counts @ gaps).abs().sum(dim=1) / n
        for counts in _counts(rng.key(seed, "ece"), resamples, n)
    ]
    low, high = _percentiles(torch.cat(draws))
    return [max(0.0, 2 * estimate - high), max(0.0, 2 * estimate - low)]


def _weighted_auc(counts: Tensor, order: Tensor, ends: Tensor, positive: Tensor) -> Tensor:
    """(R,) AUC of each of R resamples: the share of pairs won, a tie counting as half a win."""
    weight = counts[:, order]
    above = (weight * positive).cumsum(dim=1)[:, ends]  # positives up to and with each group
    below = (weight * (1 - positive)).cumsum(dim=1)[:, ends]
    won = torch.diff(above, dim=1, prepend=above.new_zeros(len(above), 1))
    tied = torch.diff(below, dim=1, prepend=below.new_zeros(len(below), 1))
    return (won * (below - tied / 2)).sum(dim=1) / (above[:, -1] * below[:, -1])


def _counts(key: int, resamples: int, n: int) -> Iterator[Tensor]:
    """Yield (R, n) float64: how often each sample is drawn in each of R resamples, R a chunk."""
    step = max(1, _CHUNK // n)
    for first in range(0, resamples, step):
        rows = torch.arange(first, min(first + step, resamples))
        drawn = (rng.uniform(key, rows, n) * n).long()
        flat = drawn + torch.arange(len(rows))[:, None] * n
        yield torch.bincount(flat.flatten(), minlength=len(rows) * n).double().view(-1, n)


def _percentiles(draws: Tensor) -> list[float]:
    draws = draws[~draws.isnan()]
    if len(draws) == 0:
        return [math.nan, math.nan]
    return draws.quantile(torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
