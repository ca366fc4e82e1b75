"""95 % intervals, from random numbers that are keyed: the same outputs give the same interval."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lensdist import rng
from lensdist.errors import RunError

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
    if a.shape != b.shape or a.ndim not in (1, 2):
        raise ValueError(
            "paired scores need one shape, (N,) or (S, N), "
            f"not {tuple(a.shape)} and {tuple(b.shape)}"
        )
    d = a.detach().cpu().double() - b.detach().cpu().double()
    d = d[None] if d.ndim == 1 else d
    if d.numel() == 0 or not d.isfinite().all():
        raise RunError("paired scores must be there, and finite")
    seeds, n = d.shape
    rows = torch.cat(list(_counts(rng.key(seed, "paired", "seeds"), resamples, seeds)))
    draws: list[Tensor] = []
    for counts in _counts(rng.key(seed, "paired", "samples"), resamples, n):
        first = sum(map(len, draws))
        by_seed = rows[first : first + len(counts)] @ d
        draws.append((by_seed * counts).sum(dim=1) / d.numel())
    ci = _percentiles(torch.cat(draws))
    return {"difference": d.mean().item(), "ci": ci, "n": n, "seeds": seeds}


def auc_interval(scores: Tensor, truth: Tensor, *, seed: int, resamples: int) -> list[float]:
    """Interval of the macro AUC, bootstrapped over samples (Efron 1979, percentiles).

    Args:
        scores: (K, N) any order-preserving score of each class.
        truth: (K, N) bool.
        seed: names the resamples.
        resamples: how many.

    Returns:
        [low, high]; NaN when no class can be scored. A resample that lacks a class takes the
        mean over the classes it has.
    """
    classes = []
    for score, positive in zip(scores, truth, strict=True):
        order = score.argsort()
        last = torch.ones(len(order), dtype=torch.bool)
        last[:-1] = score[order].diff() > 0  # the last of each group of equal scores
        classes.append((order, last.nonzero().flatten(), positive[order].double()))
    draws = [
        torch.stack([_weighted_auc(counts, *each) for each in classes]).nanmean(dim=0)
        for counts in _counts(rng.key(seed, "auc"), resamples, scores.shape[1])
    ]
    return _percentiles(torch.cat(draws))


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
