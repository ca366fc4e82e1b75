"""Store scores of single images, and compute scores over several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lensdist.metrics import scores as metrics
from lensdist.metrics.bootstrap import auc_interval
from lensdist.metrics.seeds import proportion_interval, widened


def kept(path: Path) -> dict[str, Tensor]:
    """Read the scores of single images that `write_images` wrote."""
    return dict(load_file(path))


def correct(logits: Tensor, truth: Tensor) -> Tensor:
    """Return (seeds, test images) 0 or 1, from logits (seeds, test images, classes)."""
    return (logits.argmax(2) == truth).double()


def over_seeds(logits: Tensor, truth: Tensor) -> dict[str, Any]:
    """Return accuracy and macro AUC of logits (seeds, test images, classes), with intervals.

    The intervals cover seeds and test images. `lowest` is the accuracy of the worst seed.
    """
    names = [str(k) for k in range(logits.shape[2])]
    each = [metrics.classification(one, truth, names) for one in logits]
    right = correct(logits, truth)
    # Log-odds against the rest, seed by seed: resampled test images are the same for all seeds.
    odds = torch.cat([torch.logit(z.double().softmax(1).T, eps=1e-15) for z in logits])
    hot = torch.nn.functional.one_hot(truth, len(names)).T.bool()
    aucs = torch.tensor([one["auc_macro"] for one in each], dtype=torch.float64)
    auc = aucs.mean().item()
    interval = auc_interval(odds, hot.repeat(len(each), 1), seed=0, resamples=500)
    return {
        "accuracy": right.mean().item(),
        "accuracy_ci": proportion_interval(right),
        "lowest": min(one["accuracy"] for one in each),
        "auc_macro": auc,
        "auc_macro_ci": [min(end, 1.0) for end in widened(auc, interval, aucs)],
        "ece": sum(one["ece"] for one in each) / len(each),
        "accuracy_by_seed": [one["accuracy"] for one in each],
    }
