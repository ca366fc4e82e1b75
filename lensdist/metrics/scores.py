"""Compute metrics of a split from its gathered per-sample outputs.

Every function takes full tensors: exactly the split's samples, each once, in any order. So no
number depends on how many processes or batches computed the outputs. Numbers come from torchmetrics
if it has them; intervals are ours, from keyed random numbers, so that the same outputs always give
the same interval.

An undefined quantity (the AUC of a class that the split lacks) is NaN, and null in JSON.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lensdist.metrics.bootstrap import Z95, auc_intervals, calibration_interval, wilson
from lensdist.utils.errors import RunError
from lensdist.utils.torchvision_compat import import_torchvision

_ROWS = 4096  # samples at a time, for steps that need several numbers per logit


def classification(logits: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Score a classifier.

    Args:
        logits: (N, K) any float type.
        labels: (N,) integers in [0, K).
        names: the K classes, in the order of the logits.

    Returns:
        `n`; `labels` (the names); `accuracy`; `auc_per_class` (against the rest) and
        `auc_macro`, its mean over the classes that can be scored; `ece`, the top-label expected
        calibration error in 15 equal bins (Guo et al. 2017, arXiv:1706.04599); `nll`, mean -log p
        of the true class in nats; `brier`, mean of sum_k (p_k - y_k)², 0 to 2 (Brier 1950);
        `confusion` (K rows of truth, K columns of prediction). A tie goes to the first class.

    Raises:
        RunError: there is no sample, or an output is not finite.
        ValueError: shapes, labels and names do not fit together.
    """
    z, y = _checked(logits, labels, len(names))
    log_p = torch.log_softmax(z, dim=1)
    p = log_p.exp()  # minus 1 for the true class, from here on
    p[torch.arange(len(y)), y] -= 1
    confusion = _torchmetrics().multiclass_confusion_matrix(z.argmax(dim=1), y, len(names))
    aucs = [_auc(rank, y == k) for k, rank in enumerate(_ranks(z))]
    present = [auc for auc in aucs if not math.isnan(auc)]
    return {
        "n": len(y),
        "labels": list(names),
        "accuracy": confusion.diagonal().sum().item() / len(y),
        "auc_macro": sum(present) / len(present) if present else math.nan,
        "auc_per_class": aucs,
        "ece": _gaps(z, y).sum(dim=0).abs().sum().item() / len(y),
        "nll": -log_p.gather(1, y[:, None]).mean().item(),
        "brier": p.square().sum(dim=1).mean().item(),
        "confusion": confusion.tolist(),
    }


MANY_CLASSES = 50
"""Above this number of classes, ROC curves and the intervals of AUCs are skipped: they cost much.
"""


def intervals(
    logits: Tensor, labels: Tensor, *, seed: int = 0, resamples: int = 1000
) -> dict[str, Any]:
    """Return 95 % intervals [low, high] of accuracy, macro AUC, ECE and each class's AUC.

    They are named `accuracy_ci`, `auc_macro_ci`, `ece_ci` and `auc_per_class_ci`. Accuracy is a
    proportion, so its interval is Wilson's, which has a width at 100 %, unlike the bootstrap's.
    AUCs are bootstrapped over samples; if every resample separates the classes perfectly the width
    is 0, so read it with `n`. Those of more than `MANY_CLASSES` are NaN.

    Args:
        logits: (N, K).
        labels: (N,).
        seed: of the resamples.
        resamples: their number.
    """
    z, y = _checked(logits, labels, logits.shape[-1])
    macro = [math.nan, math.nan]
    each = [macro] * z.shape[1]
    if len(each) <= MANY_CLASSES:
        truth = torch.nn.functional.one_hot(y, z.shape[1]).T.bool()
        ranks = torch.stack(list(_ranks(z)))
        macro, each = auc_intervals(ranks, truth, seed=seed, resamples=resamples)
    return {
        "accuracy_ci": wilson(int((z.argmax(dim=1) == y).sum()), len(y)),
        "auc_macro_ci": macro,
        "auc_per_class_ci": each,
        "ece_ci": calibration_interval(_gaps(z, y), seed=seed, resamples=resamples),
    }


def reconstruction(mse: Tensor, data_range: float | Tensor) -> dict[str, Any]:
    """Score reconstructed images.

    Args:
        mse: (N,) mean squared error of each image, in squared image units.
        data_range: largest minus smallest possible value: one number, or (N,).

    Returns:
        `n`; `mse`, the mean; `psnr`, the mean over images of 10 log10(range² / mse) in dB, with
        `psnr_std` and `psnr_ci` (normal, 95 %). An image without any error, or a blank one
        without a range, has no finite PSNR: `no_psnr` counts them, and `psnr` leaves them out.

    Raises:
        RunError: there is no image, or an error is negative or not finite.
        ValueError: a shape or a range is invalid.
    """
    e = mse.detach().cpu().double()
    span = torch.as_tensor(data_range, dtype=torch.float64)
    if e.ndim != 1 or (span.ndim and span.shape != e.shape) or not (span >= 0).all():
        raise ValueError(f"needs mse (N,) and a data range >= 0: {e.shape}, {span.shape}")
    if len(e) == 0 or not (e.isfinite() & (e >= 0)).all():
        raise RunError(f"the squared errors of {len(e)} images must be there, finite and >= 0")
    psnr = (10 * torch.log10(span.square() / e))[(e > 0) & (span > 0)]
    mean = psnr.mean().item()
    std = psnr.std().item() if len(psnr) > 1 else math.nan
    half = Z95 * std / math.sqrt(max(len(psnr), 1))
    return {
        "n": len(e),
        "mse": e.mean().item(),
        "psnr": mean,
        "psnr_std": std,
        "psnr_ci": [mean - half, mean + half],
        "no_psnr": len(e) - len(psnr),
    }


def roc_curves(
    logits: Tensor, labels: Tensor, names: Sequence[str], points: int = 512
) -> dict[str, dict[str, list[float]]]:
    """Return the ROC curve of each class against the rest, `{name: {"fpr": [...], "tpr": [...]}}`.

    A curve is a staircase; at most `points` of its corners are kept, evenly along its length, so no
    point of it is further than 2 / points from a kept one. Undefined curves are empty lists.
    """
    z, y = _checked(logits, labels, len(names))
    curves: dict[str, dict[str, list[float]]] = {}
    for k, (name, rank) in enumerate(zip(names, _ranks(z), strict=True)):
        truth = y == k
        if truth.all() or not truth.any():
            curves[name] = {"fpr": [], "tpr": []}
            continue
        fpr, tpr, _ = _torchmetrics().binary_roc(rank, truth.long())
        length = (fpr + tpr).double()
        wanted = torch.linspace(0, length[-1].item(), points, dtype=torch.float64)
        kept = torch.searchsorted(length, wanted).clamp(max=len(length) - 1)
        kept = kept[torch.cat([kept[:1] >= 0, kept.diff() > 0])]  # each once
        curves[name] = {"fpr": fpr[kept].tolist(), "tpr": tpr[kept].tolist()}
    return curves


def reliability(logits: Tensor, labels: Tensor, bins: int = 15) -> dict[str, list[float]]:
    """Return mean top-label `confidence`, `accuracy` and `count` in equal bins of confidence.

    Each list has `bins` items; a bin without samples has NaN. `ece` is the mean of |accuracy -
    confidence| weighted by count.
    """
    z, y = _checked(logits, labels, logits.shape[-1])
    confidence, right, where = _binned(z, y, bins)
    count = torch.bincount(where, minlength=bins).double()
    hits = torch.bincount(where, weights=right, minlength=bins)
    return {
        "confidence": (torch.bincount(where, weights=confidence, minlength=bins) / count).tolist(),
        "accuracy": (hits / count).tolist(),
        "count": count.tolist(),
    }


def mass_binned(
    logits: Tensor,
    labels: Tensor,
    mass: Tensor,
    names: Sequence[str],
    edges: Sequence[float] = (-24.0, -23.75, -23.5, -23.25, -23.0, -22.75, -22.5, -22.25, -22.0),
) -> list[dict[str, Any]]:
    """Compare `cdm` with `axion` by axion mass: one row per bin of log10(m / eV).

    Light axions are the hard ones: at 1e-24 eV a vortex is 6 arcsec long, and its masses lie as far
    apart as subhalos do. Heavy axions make one that is shorter than a pixel, nearly a central point
    mass, which no subhalos resemble. Only the logits of these two classes are compared.

    Args:
        logits: (N, K).
        labels: (N,).
        mass: (N,) axion mass in eV; NaN for the other classes.
        names: the K classes; `cdm` and `axion` must be among them.
        edges: bin edges in log10(m / eV); the outermost bins include values beyond them.

    Returns:
        Rows of `log10_mass_low`, `log10_mass_high`, `n` (axion samples in the bin), `recall` (their
        share called axion) with `recall_ci` (Wilson), `accuracy` (mean of `recall` and the share
        of all cdm samples called cdm) and `auc` (the bin's axions against all cdm).

    Raises:
        RunError, ValueError: as `classification`; also if an axion sample has no mass.
    """
    z, y = _checked(logits, labels, len(names))
    if not {"cdm", "axion"} <= set(names):
        raise ValueError(f"needs the classes cdm and axion, not {', '.join(names)}")
    is_cdm, is_axion = (y == list(names).index(each) for each in ("cdm", "axion"))
    m = mass.detach().cpu().double()
    if m.shape != y.shape or not (m[is_axion] > 0).all():
        raise ValueError("mass must be (N,), and positive for every axion sample")
    score = z[:, list(names).index("axion")] - z[:, list(names).index("cdm")]
    inner = torch.tensor(list(edges[1:-1]), dtype=torch.float64)
    which = torch.bucketize(m.log10(), inner, right=True)
    specificity = (score[is_cdm] <= 0).double().mean().item()
    rows = []
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        here = is_axion & (which == i)
        both = here | is_cdm
        called = score[here] > 0
        recall = called.double().mean().item()
        rows.append(
            {
                "log10_mass_low": low,
                "log10_mass_high": high,
                "n": len(called),
                "recall": recall,
                "recall_ci": wilson(int(called.sum()), len(called)),
                "accuracy": (recall + specificity) / 2,
                "auc": _auc(_dense_rank(score[both]), here[both]),
            }
        )
    return rows


def _checked(logits: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return both on the CPU, in float64 and int64, or raise an error."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or logits.shape[1] != classes:
        raise ValueError(
            f"needs logits (N, {classes}) and labels (N,), not "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if classes < 2 or labels.is_floating_point():
        raise ValueError("needs at least two classes, and labels that are integers")
    z, y = logits.detach().cpu().double(), labels.detach().cpu().long()
    if len(y) == 0:
        raise RunError("there are no samples to evaluate")
    bad = int((~z.isfinite()).any(dim=1).sum())
    if bad:
        raise RunError(f"the model's output is NaN or infinite for {bad} of {len(y)} samples")
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(f"labels run from {y.min()} to {y.max()}; there are {classes} classes")
    return z, y


def _binned(z: Tensor, y: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (N,) confidence in the top label, whether it is right, and the bin of the confidence.

    torchmetrics rounds to float32 first: the 1 - 1e-9 of a confident model becomes 1 and falls into
    a sixteenth bin.
    """
    confidence, predicted = torch.softmax(z, dim=1).max(dim=1)
    where = (confidence * bins).long().clamp(max=bins - 1)
    return confidence, (predicted == y).double(), where


def _gaps(z: Tensor, y: Tensor, bins: int = 15) -> Tensor:
    """Return (N, bins): right - confidence in a sample's own bin, as in the reliability diagram."""
    confidence, right, where = _binned(z, y, bins)
    return torch.nn.functional.one_hot(where, bins) * (right - confidence)[:, None]


def _ranks(z: Tensor) -> Iterator[Tensor]:
    """Yield, for each class, (N,) float64 in [0, 1]: ranks by log-odds against the rest.

    An AUC depends only on the order of the scores. Probabilities of a confident model round to 1
    and tie; raw logits would pass torchmetrics' own sigmoid, which rounds too (measured: 0.023 of
    AUC lost in float32). Log-odds are monotone in the probability and do not round.
    """
    odds = torch.empty_like(z)
    for part, found in zip(torch.split(z, _ROWS), torch.split(odds, _ROWS), strict=True):
        part = part - part.amax(dim=1, keepdim=True)  # equal odds become bitwise equal
        before, after = part.logcumsumexp(1), part.flip(1).logcumsumexp(1).flip(1)
        found[:, 0] = part[:, 0] - after[:, 1]
        found[:, -1] = part[:, -1] - before[:, -2]
        found[:, 1:-1] = part[:, 1:-1] - torch.logaddexp(before[:, :-2], after[:, 2:])
    for each in odds.T:
        yield _dense_rank(each)


def _dense_rank(score: Tensor) -> Tensor:
    """Return (N,) float64 in [0, 1], in the order of `score`, with equal ranks for equal scores."""
    values, rank = np.unique(score.numpy(), return_inverse=True)
    return torch.from_numpy(rank / max(len(values) - 1, 1))


def _auc(rank: Tensor, truth: Tensor) -> float:
    """Return the area under the ROC curve; NaN if all samples, or none, are of the class."""
    if truth.all() or not truth.any():
        return math.nan
    return float(_torchmetrics().binary_auroc(rank, truth.long()))


@cache
def _torchmetrics() -> Any:
    """Import torchmetrics when it is first needed: it takes two seconds."""
    import_torchvision()  # torchmetrics imports it, and fails if its operators do not load
    from torchmetrics.functional import classification

    return classification
