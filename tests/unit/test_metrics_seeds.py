"""Intervals over few seeds: their coverage by simulation, and everything degenerate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lensdist.metrics import bootstrap
from lensdist.metrics.seeds import (
    error_reduction,
    mean_interval,
    paired_difference,
    paired_ratio,
    proportion_interval,
    widened,
)
from lensdist.utils.errors import RunError

TRIALS = 500


def answers(
    g: torch.Generator, seeds: int, n: int, effect: float, accuracy: Tensor | float
) -> Tensor:
    """Draw right answers (trials, seeds, n); half of the images are as hard for every seed.

    The seeds' accuracies are normal about `accuracy`, with the standard deviation `effect`.
    """
    luck = torch.rand(TRIALS, seeds, n, generator=g)
    alike = torch.rand(TRIALS, 1, n, generator=g) < 0.5
    luck = torch.where(alike, luck[:, :1], luck)
    skill = accuracy + effect * torch.randn(TRIALS, seeds, 1, generator=g)
    return (luck < skill).double()


@pytest.mark.parametrize("n", [600, 1500])
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("effect", [0.0, 0.01, 0.02])
def test_they_cover_seeds_and_images(seeds: int, n: int, effect: float) -> None:
    """At least 93 % of them contain the truth, alone and paired; not all do, if seeds differ."""
    g = torch.Generator().manual_seed(1)
    one, two = (answers(g, seeds, n, effect, accuracy) for accuracy in (0.9, 0.88))
    alone = [proportion_interval(each) for each in one]
    paired = [paired_difference(a, b)["ci"] for a, b in zip(one, two, strict=True)]
    ratios = [paired_ratio(1 - a, 1 - b)["ci"] for a, b in zip(one, two, strict=True)]
    for intervals, truth in ((alone, 0.9), (paired, 0.02), (ratios, 0.1 / 0.12)):
        inside = sum(low <= truth <= high for low, high in intervals) / TRIALS
        assert inside >= 0.93
        assert effect < 0.02 or inside <= 0.985  # they are not simply wide


def test_of_one_seed_they_are_the_usual_ones() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2000, generator=g)
    half = bootstrap.Z95 * x.double().std().item() / math.sqrt(2000)
    mean = x.double().mean().item()
    assert mean_interval(x) == pytest.approx([mean - half, mean + half], abs=1e-4)
    hits = torch.rand(500, generator=g) < 0.9
    assert proportion_interval(hits) == pytest.approx(
        bootstrap.wilson(int(hits.sum()), 500), abs=1e-3
    )


def test_of_few_values_they_are_student_s() -> None:
    x = torch.tensor([[1.0], [2.0], [4.0]])
    half = 4.302652729911275 * math.sqrt(7 / 3 / 3)  # t of 2 degrees of freedom
    assert mean_interval(x) == pytest.approx([7 / 3 - half, 7 / 3 + half])
    assert mean_interval(x[:, 0]) == pytest.approx([7 / 3 - half, 7 / 3 + half])
    both = paired_ratio(x, torch.full((3, 1), 2.0))
    assert both["ratio"] == pytest.approx(7 / 6)
    assert both["ci"] == pytest.approx([7 / 6 - half / 2, 7 / 6 + half / 2])
    hits = torch.tensor([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    p = 10 / 12  # the variance over seeds is 1/48, over images 1/27
    parts = ((1 / 48 / 3, 2), (1 / 27 / 4, 3))
    error = sum(part for part, _ in parts)
    free = error**2 / sum(part**2 / df for part, df in parts)
    assert free == pytest.approx(4.983, abs=1e-3)
    n = p * (1 - p) / error
    assert proportion_interval(hits) == pytest.approx(bootstrap.wilson(p * n, n, 2.57321), abs=1e-5)


def test_perfect_seeds_keep_a_width() -> None:
    assert proportion_interval(torch.ones(3, 100)) == bootstrap.wilson(100, 100)
    assert paired_difference(torch.ones(3, 9), torch.ones(3, 9))["ci"] == [0, 0]


def test_an_auc_is_widened_by_its_seeds() -> None:
    alike, apart = torch.tensor([0.9, 0.9, 0.9]), torch.tensor([0.85, 0.9, 0.95])
    assert widened(0.9, [0.88, 0.91], alike) == pytest.approx([0.88, 0.91], abs=1e-6)
    low, high = widened(0.9, [0.88, 0.91], apart)
    assert (0.9 - low) / (high - 0.9) == pytest.approx(2)  # as lopsided as before
    assert high - low == pytest.approx(2 * 4.303 * 0.05 / math.sqrt(3), rel=0.1)  # t of 2 df
    assert widened(1.0, [1.0, 1.0], alike) == [1.0, 1.0]


def test_paired_difference_sees_what_unpaired_intervals_hide() -> None:
    g = torch.Generator().manual_seed(0)
    hard = torch.rand(2000, generator=g) < 0.3
    a, b = ~hard, ~hard
    b[:20] = False
    got = paired_difference(a, b)
    assert got["n"] == 2000
    assert got["difference"] == pytest.approx((a.double() - b.double()).mean().item())
    assert 0 < got["ci"][0] < got["difference"] < got["ci"][1] < 0.02
    back = paired_difference(b, a)
    assert back["ci"] == pytest.approx([-got["ci"][1], -got["ci"][0]])


def test_paired_difference_over_seeds_is_wider() -> None:
    g = torch.Generator().manual_seed(0)
    d = torch.randn(1, 1000, generator=g) + torch.tensor([[-0.5], [0.0], [0.5], [1.0]])
    zero = torch.zeros_like(d)
    both = paired_difference(d, zero)
    flat = paired_difference(d.mean(0), zero[0])
    assert both["difference"] == pytest.approx(flat["difference"], abs=1e-6)
    assert both["ci"][1] - both["ci"][0] > 4 * (flat["ci"][1] - flat["ci"][0])


def test_paired_difference_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="one shape"):
        paired_difference(torch.zeros(3), torch.zeros(4))
    with pytest.raises(RunError):
        paired_difference(torch.tensor([math.nan]), torch.zeros(1))


def test_error_reduction() -> None:
    g = torch.Generator().manual_seed(0)
    b = torch.rand(3000, generator=g) > 0.2
    a = b | (torch.rand(3000, generator=g) < 0.6)  # six in ten of b's errors are gone
    got = error_reduction(a, b)
    assert (got["n"], got["seeds"]) == (3000, 1)
    assert got["error_b"] == pytest.approx(1 - b.double().mean().item())
    assert got["reduction"] == pytest.approx(1 - got["error_a"] / got["error_b"])
    # A share of the 600 errors of b, so its interval is nearly the binomial's.
    assert got["ci"] == pytest.approx(bootstrap.wilson(int((a & ~b).sum()), 600), abs=0.01)
    worse = error_reduction(b, a)
    assert worse["reduction"] == pytest.approx(1 - 1 / (1 - got["reduction"]))


def test_error_reduction_over_seeds_is_of_mean_errors_and_wider() -> None:
    g = torch.Generator().manual_seed(0)
    u = torch.rand(1, 2000, generator=g)
    b = (u > 0.2).expand(4, -1)
    a = u > torch.tensor([[0.02], [0.05], [0.1], [0.15]])
    both = error_reduction(a, b)
    assert both["seeds"] == 4
    assert both["reduction"] == pytest.approx(1 - (~a).sum().item() / (~b).sum().item())
    one = error_reduction(a[1], b[1])
    assert both["ci"][1] - both["ci"][0] > 2 * (one["ci"][1] - one["ci"][0])


def test_error_reduction_of_no_errors_does_not_exist() -> None:
    right, wrong = torch.ones(5), torch.zeros(5)
    got = error_reduction(wrong, right)
    assert all(map(math.isnan, [got["reduction"], *got["ci"]]))
    perfect = error_reduction(right, wrong)
    assert (perfect["reduction"], perfect["ci"]) == (1, [1, 1])
    with pytest.raises(ValueError, match="one shape"):
        error_reduction(right, right[:3])
