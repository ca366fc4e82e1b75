"""95 % intervals over few seeds and many samples, from their variances and Student's t.

The scores x[s, i] of S seeds on the same N samples have a variance between seeds, one between
samples, and noise. The mean over all has the variance var(seed means) / S + var(sample means) / N;
each term holds the noise once, so the sum is slightly too large. Its degrees of freedom are
Satterthwaite's (1946, doi:10.2307/3002019). A bootstrap that resamples three seeds loses a third of
their variance and ignores that t has two degrees of freedom: where seeds differ by .02, its "95 %"
contain the truth in 86 % of cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lensdist.metrics.bootstrap import Z95, wilson
from lensdist.utils.errors import RunError


def mean_interval(values: Tensor) -> list[float]:
    """Return the interval of the mean of (N,) or (S, N) values of S seeds; NaN for a single value.

    Raises:
        RunError, ValueError: as `paired_difference`.
    """
    return _about_mean(_checked(values))


def proportion_interval(hits: Tensor) -> list[float]:
    """Return the interval of the share of hits, (N,) or (S, N) 0 or 1 of S seeds.

    It is Wilson's for the number of independent trials with the same variance, so it has a width
    even if all are hits, and does not leave [0, 1].

    Raises:
        RunError, ValueError: as `paired_difference`.
    """
    x = _checked(hits)
    error, t = _spread(x)
    p, n = x.mean().item(), float(x.shape[1])
    if error > 0:
        n = min(p * (1 - p) / error**2, x.numel())
    return wilson(p * n, n, t if error > 0 else Z95)


def paired_difference(a: Tensor, b: Tensor) -> dict[str, Any]:
    """Compare two models on the same samples, with an interval.

    Pairing removes the difficulty that a sample has for both, so it detects far smaller differences
    than a comparison of two intervals.

    Args:
        a: (N,) or (S, N): a score for each sample, such as correct (0 or 1) or PSNR, of S seeds.
        b: the same samples in the same order under the other model.

    Returns:
        `difference` (mean of a - b), `ci` [low, high], `n`, `seeds`.

    Raises:
        RunError: there is no sample, or a score is not finite.
        ValueError: the shapes differ.
    """
    a, b = _checked(a, b.shape), _checked(b)
    d = a - b
    return {
        "difference": d.mean().item(),
        "ci": _about_mean(d),
        "n": d.shape[1],
        "seeds": len(d),
    }


def error_reduction(a_correct: Tensor, b_correct: Tensor) -> dict[str, Any]:
    """Return the share of b's errors that a avoids, 1 - error(a) / error(b), with its interval.

    Args:
        a_correct: (N,) or (S, N) 0 or 1, or bool: which samples each of S seeds gets right.
        b_correct: the same samples in the same order under the other model.

    Returns:
        `reduction` (0.6: six in ten errors are avoided; below 0: more errors; NaN if b makes
        none), `ci` [low, high], `error_a`, `error_b`, `n`, `seeds`.

    Raises:
        RunError, ValueError: as `paired_difference`.
    """
    a, b = 1 - _checked(a_correct, b_correct.shape), 1 - _checked(b_correct)
    found = paired_ratio(a, b)
    low, high = found["ci"]
    return {
        "reduction": 1 - found["ratio"],
        "ci": [1 - high, min(1 - low, 1.0)],
        "error_a": a.mean().item(),
        "error_b": b.mean().item(),
        "n": a.shape[1],
        "seeds": len(a),
    }


def paired_ratio(a: Tensor, b: Tensor) -> dict[str, Any]:
    """Return mean(a) / mean(b) of two models on the same samples, with its interval.

    The ratio is linearised about its value (delta method), sample by sample.

    Args:
        a, b: (N,) or (S, N): a value for each sample, of S seeds, in any unit.

    Returns:
        `ratio` and `ci` [low, high]; NaN if the mean of b is not above 0.

    Raises:
        RunError, ValueError: as `paired_difference`.
    """
    a, b = _checked(a, b.shape), _checked(b)
    below = b.mean().item()
    if below <= 0:
        return {"ratio": math.nan, "ci": [math.nan, math.nan]}
    ratio = a.mean().item() / below
    low, high = _about_mean((a - ratio * b) / below)
    return {"ratio": ratio, "ci": [ratio + low, ratio + high]}


def widened(estimate: float, ci: Sequence[float], of_seeds: Tensor) -> list[float]:
    """Return an interval over samples, widened so that it also covers the seeds.

    Args:
        estimate: the mean over the seeds.
        ci: its interval [low, high] over the samples, for these seeds.
        of_seeds: (S,) the value of each seed.
    """
    half = (ci[1] - ci[0]) / 2
    if len(of_seeds) < 2 or not half > 0:
        return list(ci)
    seeds = of_seeds.double().var().item() / len(of_seeds)
    error, t = _error([(seeds, len(of_seeds) - 1), ((half / Z95) ** 2, math.inf)])
    return [estimate + (end - estimate) * t * error / half for end in ci]


def _checked(x: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Return (S, N) float64 on the CPU, or raise an error."""
    if x.ndim not in (1, 2) or x.shape != (shape or x.shape):
        raise ValueError(
            f"scores need one shape, (N,) or (S, N), not {tuple(x.shape)} and {tuple(shape or ())}"
        )
    x = x.detach().cpu().double()
    if x.numel() == 0 or not x.isfinite().all():
        raise RunError("scores must not be empty, and must be finite")
    return x if x.ndim == 2 else x[None]


def _about_mean(x: Tensor) -> list[float]:
    mean = x.mean().item()
    error, t = _spread(x)
    return [mean - t * error, mean + t * error]


def _spread(x: Tensor) -> tuple[float, float]:
    """Return the standard error of the mean of (S, N) values, and its quantile of Student's t."""
    seeds, n = x.shape
    if x.numel() == 1:
        return math.nan, math.nan
    parts = [(x.mean(1).var().item() / seeds, seeds - 1)] if seeds > 1 else []
    parts += [(x.mean(0).var().item() / n, n - 1)] if n > 1 else []
    return _error(parts)


def _error(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the root of a sum of variances with their degrees of freedom, and t's quantile."""
    from scipy.special import stdtrit

    variance = sum(part for part, _ in parts)
    if not variance > 0:
        return 0.0, Z95
    free = variance**2 / max(sum(part**2 / df for part, df in parts), variance**2 * 1e-9)
    return math.sqrt(variance), float(stdtrit(free, 0.975))
