"""Intervals: against a textbook's bootstrap, by their coverage, and on everything degenerate."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from lensdist.metrics import bootstrap
from lensdist.metrics import scores as metrics
from lensdist.utils.errors import RunError
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


def test_paired_bootstrap_sees_what_unpaired_intervals_hide() -> None:
    g = torch.Generator().manual_seed(0)
    hard = torch.rand(2000, generator=g) < 0.3
    a, b = ~hard, ~hard
    b[:20] = False
    got = bootstrap.paired_bootstrap(a, b, resamples=2000)
    assert got["n"] == 2000
    assert got["difference"] == pytest.approx((a.double() - b.double()).mean().item())
    assert 0 < got["ci"][0] < got["difference"] < got["ci"][1] < 0.02
    back = bootstrap.paired_bootstrap(b, a, resamples=2000)
    assert back["ci"] == pytest.approx([-got["ci"][1], -got["ci"][0]])


def test_paired_bootstrap_over_seeds_is_wider() -> None:
    g = torch.Generator().manual_seed(0)
    d = torch.randn(1, 1000, generator=g) + torch.tensor([[-0.5], [0.0], [0.5], [1.0]])
    zero = torch.zeros_like(d)
    both = bootstrap.paired_bootstrap(d, zero, resamples=1000)
    flat = bootstrap.paired_bootstrap(d.mean(0), zero[0], resamples=1000)
    assert both["difference"] == pytest.approx(flat["difference"], abs=1e-6)
    assert both["ci"][1] - both["ci"][0] > 4 * (flat["ci"][1] - flat["ci"][0])


def test_paired_bootstrap_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="one shape"):
        bootstrap.paired_bootstrap(torch.zeros(3), torch.zeros(4))
    with pytest.raises(RunError):
        bootstrap.paired_bootstrap(torch.tensor([math.nan]), torch.zeros(1))


def test_error_reduction() -> None:
    g = torch.Generator().manual_seed(0)
    b = torch.rand(3000, generator=g) > 0.2
    a = b | (torch.rand(3000, generator=g) < 0.6)  # six in ten of b's errors are gone
    got = bootstrap.error_reduction(a, b)
    assert (got["n"], got["seeds"]) == (3000, 1)
    assert got["error_b"] == pytest.approx(1 - b.double().mean().item())
    assert got["reduction"] == pytest.approx(1 - got["error_a"] / got["error_b"])
    # A share of the 600 errors of b, so its interval is nearly the binomial's.
    assert got["ci"] == pytest.approx(bootstrap.wilson(int((a & ~b).sum()), 600), abs=0.01)
    worse = bootstrap.error_reduction(b, a)
    assert worse["reduction"] == pytest.approx(1 - 1 / (1 - got["reduction"]))


def test_error_reduction_over_seeds_is_of_mean_errors_and_wider() -> None:
    g = torch.Generator().manual_seed(0)
    u = torch.rand(1, 2000, generator=g)
    b = (u > 0.2).expand(4, -1)
    a = u > torch.tensor([[0.02], [0.05], [0.1], [0.15]])
    both = bootstrap.error_reduction(a, b, resamples=1000)
    assert both["seeds"] == 4
    assert both["reduction"] == pytest.approx(1 - (~a).sum().item() / (~b).sum().item())
    one = bootstrap.error_reduction(a[1], b[1], resamples=1000)
    assert both["ci"][1] - both["ci"][0] > 2 * (one["ci"][1] - one["ci"][0])


def test_error_reduction_of_no_errors_does_not_exist() -> None:
    right, wrong = torch.ones(5), torch.zeros(5)
    got = bootstrap.error_reduction(wrong, right)
    assert all(map(math.isnan, [got["reduction"], *got["ci"]]))
    perfect = bootstrap.error_reduction(right, wrong)
    assert (perfect["reduction"], perfect["ci"]) == (1, [1, 1])
    with pytest.raises(ValueError, match="one shape"):
        bootstrap.error_reduction(right, right[:3])


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
