"""Intervals: against a textbook's bootstrap, by their coverage, and on everything degenerate."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from lensdist.metrics import bootstrap
from lensdist.metrics import scores as metrics
from tests.unit.test_evaluate_metrics import made


def test_intervals_are_keyed_and_of_the_right_width() -> None:
    z, y = made(400)
    got = metrics.intervals(z, y, seed=3, resamples=400)
    assert got == metrics.intervals(z, y, seed=3, resamples=400)
    assert got != metrics.intervals(z, y, seed=4, resamples=400)
    g, hot, aucs = np.random.default_rng(0), np.eye(3)[y], []
    p = torch.softmax(z.double(), 1).numpy()
    for _ in range(400):  # the bootstrap as a textbook writes it
        i = g.integers(0, 400, 400)
        aucs.append(np.mean([sk.roc_auc_score(hot[i, k], p[i, k]) for k in range(3)]))
    assert got["auc_macro_ci"] == pytest.approx(np.percentile(aucs, [2.5, 97.5]), abs=0.006)


def test_intervals_cover_what_they_should() -> None:
    """Nominal 95 % over many small splits, whose true AUC is Phi(skill / sqrt 2)."""
    truth, inside = 0.5 * (1 + math.erf(1.0 / 2)), 0
    for seed in range(100):
        z, y = made(150, classes=2, skill=0, seed=seed)
        z[:, 1] = z[:, 0] + torch.randn(150, generator=torch.Generator().manual_seed(seed)) + y
        low, high = metrics.intervals(z.double(), y, resamples=200)["auc_macro_ci"]
        inside += low <= truth <= high
    assert 88 <= inside <= 99


def test_perfect_accuracy_keeps_a_width() -> None:
    low, high = bootstrap.wilson(100, 100)
    assert high == 1.0
    assert low == pytest.approx(0.963, abs=1e-3)
    assert bootstrap.wilson(0, 100) == pytest.approx([0.0, 0.037], abs=1e-3)


def test_resamples_depend_on_seed_and_number_but_not_on_how_many_are_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    z, y = made(40)
    whole = metrics.intervals(z, y, resamples=100)
    other = metrics.intervals(z, y, seed=1, resamples=100)
    fewer = metrics.intervals(z, y, resamples=60)
    for name in ("auc_macro_ci", "ece_ci"):
        assert whole[name] not in (other[name], fewer[name])
    monkeypatch.setattr(bootstrap, "_CHUNK", 7 * 40)
    assert metrics.intervals(z, y, resamples=100) == whole


def test_wilson_of_other_widths() -> None:
    half = 2 / 1.04 * math.sqrt(0.0025 + 0.0001)  # 50 of 100, z = 2
    assert bootstrap.wilson(50, 100, 2.0) == pytest.approx([0.5 - half, 0.5 + half])


def test_each_class_has_an_interval_of_its_own() -> None:
    z, y = made(400)
    z[:, 2] += 3.0 * (y == 2)  # this one is easy
    got = metrics.intervals(z, y, resamples=400)
    aucs = metrics.classification(z, y, ["a", "b", "c"])["auc_per_class"]
    each = got["auc_per_class_ci"]
    assert len(each) == 3
    for auc, (low, high) in zip(aucs, each, strict=True):
        assert low < auc < high
    p, g = torch.softmax(z.double(), 1).numpy(), np.random.default_rng(0)
    draws = []
    for _ in range(400):
        i = g.integers(0, 400, 400)
        draws.append(sk.roc_auc_score(y[i] == 0, p[i, 0]))
    assert each[0] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.008)
    widths = [high - low for low, high in each]
    assert widths[2] < min(widths[:2]) / 2
    lacking = metrics.intervals(z, y.clamp(max=1), resamples=50)["auc_per_class_ci"]
    assert all(map(math.isnan, lacking[2]))


def test_calibration_intervals_cover_what_they_should() -> None:
    """The true ECE of logits half as large again; percentiles would hold it in fewer splits."""

    def sharpened(n: int, seed: int) -> tuple[Tensor, Tensor]:
        z, y = made(n, skill=1.0, seed=seed)  # calibrated: equal noise, one unit apart
        return 1.5 * z, y

    truth, inside = metrics.classification(*sharpened(300_000, 999), ["a", "b", "c"])["ece"], 0
    for seed in range(100):
        low, high = metrics.intervals(*sharpened(300, seed), resamples=200)["ece_ci"]
        inside += low <= truth <= high
    assert 86 <= inside <= 99
