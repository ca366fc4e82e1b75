"""95 % intervals from keyed random numbers: the same outputs give the same interval."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lensdist.utils import rng

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point
_CHUNK = 1 << 20  # numbers drawn at once (8 MiB), so that memory does not grow with the split


def wilson(hits: float, n: float, z: float = Z95) -> list[float]:
    """Return a proportion's score interval (Wilson 1927, doi:10.2307/2276774); NaN if n = 0.

    Args:
        hits: those of the n trials that count.
        n: the trials; need not be whole, as an effective number is not.
        z: the half-width of the interval in standard errors.
    """
    if n == 0:
        return [math.nan, math.nan]
    p, zz = hits / n, z**2 / n
    middle = (p + zz / 2) / (1 + zz)
    half = z / (1 + zz) * math.sqrt(p * (1 - p) / n + zz / (4 * n))
    return [max(0.0, middle - half), min(1.0, middle + half)]


def auc_interval(scores: Tensor, truth: Tensor, *, seed: int, resamples: int) -> list[float]:
    """Return the interval of the macro AUC: the first of `auc_intervals`."""
    return auc_intervals(scores, truth, seed=seed, resamples=resamples)[0]


def auc_intervals(
    scores: Tensor, truth: Tensor, *, seed: int, resamples: int
) -> tuple[list[float], list[list[float]]]:
    """Return intervals of the AUCs, bootstrapped over samples (Efron 1979, percentiles).

    Args:
        scores: (K, N) any order-preserving score of each class.
        truth: (K, N) bool.
        seed: of the resamples.
        resamples: their number.

    Returns:
        [low, high] of the macro AUC, and of each of the K classes'; NaN if undefined. A resample
        that lacks a class takes the mean over the classes it has.
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


def average_precision_interval(
    scores: Tensor, truth: Tensor, *, seed: int, resamples: int
) -> list[float]:
    """Return the interval of the average precision, as `auc_intervals` does.

    Args:
        scores: (N,) any order-preserving score.
        truth: (N,) bool.
        seed: of the resamples.
        resamples: their number.
    """
    order = scores.argsort(descending=True, stable=True)
    last = torch.ones(len(order), dtype=torch.bool)
    last[:-1] = scores[order].diff() < 0
    positive, draws = truth[order].double(), []
    for counts in _counts(rng.key(seed, "average precision"), resamples, len(scores)):
        weight = counts[:, order]
        hits, called = (w.cumsum(dim=1)[:, last] for w in (weight * positive, weight))
        gain = hits.diff(dim=1, prepend=hits.new_zeros(len(hits), 1)) / hits[:, -1:]
        draws.append((hits / called.clamp_min(1) * gain).sum(dim=1))
    return _percentiles(torch.cat(draws))


def calibration_interval(gaps: Tensor, *, seed: int, resamples: int) -> list[float]:
    """Return the expected calibration error's interval (basic bootstrap: reflected percentiles).

    Noise in a bin can only increase an ECE: the estimate is too high, and its resamples are too
    high once more. Their percentiles hardly ever contain the true ECE of a nearly calibrated model;
    reflection at the estimate removes both shifts. (Measured on synthetic overconfident models of
    known ECE, 150 and 1,000 samples: 0.87 to 0.94 contain it, against 0.08 to 0.93 for percentiles;
    0 as the lower end means that the model may be calibrated.) So the interval may lie low around
    its estimate, or below it.

    Args:
        gaps: (N, bins) accuracy - confidence of each sample in its own bin, 0 in all others.
        seed: of the resamples.
        resamples: their number.
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
    """Return the (R,) AUCs of R resamples: the share of pairs won, where a tie is half a win."""
    weight = counts[:, order]
    above = (weight * positive).cumsum(dim=1)[:, ends]  # positives up to and including each group
    below = (weight * (1 - positive)).cumsum(dim=1)[:, ends]
    won = torch.diff(above, dim=1, prepend=above.new_zeros(len(above), 1))
    tied = torch.diff(below, dim=1, prepend=below.new_zeros(len(below), 1))
    return (won * (below - tied / 2)).sum(dim=1) / (above[:, -1] * below[:, -1])


def _counts(key: int, resamples: int, n: int) -> Iterator[Tensor]:
    """Yield (R, n) float64: how often each sample is drawn in each of a chunk of R resamples."""
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
