"""Random numbers: pure functions, uniform, and the same for ever."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from lensdist.utils import rng

pytestmark = pytest.mark.unit


def test_keys_are_the_same_for_ever() -> None:
    assert rng.key(0) == 12035550249420947055
    assert rng.key(1, "mask", 2) == 7434506958314923046
    assert rng.permutation(7, 8).tolist() == [2, 0, 6, 1, 5, 7, 4, 3]
    assert rng.permutation(2**64 - 1, 8).tolist() == [3, 4, 5, 0, 6, 1, 2, 7]
    large = rng.uniform(2**64 - 1, torch.tensor([-1, 2**63 - 1]), 1)
    assert large.flatten().tolist() == [0.9425383229254941, 0.07905262232374188]
    found = rng.uniform(5, torch.tensor([0, 3]), 2)
    np.testing.assert_array_equal(
        found.numpy(),
        [[0.007504616105092787, 0.7105628666414786], [0.34249083442670225, 0.32891514962602375]],
    )


def test_every_part_of_a_key_and_its_place_count() -> None:
    keys = [
        rng.key(*parts)
        for parts in ((0,), (1,), (0, 0), (0, 1), (1, 0), ("a",), ("b",), (0, "a"), ("a", 0))
    ]
    keys += [rng.key(2**63), rng.key(0, "mask", 1), rng.key(1, "mask", 0)]
    assert len(set(keys)) == len(keys)
    assert all(0 <= k < 2**64 for k in keys)


def test_rows_depend_on_their_own_sample_alone() -> None:
    samples = torch.tensor([5, 2**40, 0, 7, 7])
    rows = rng.uniform(9, samples, 6)
    assert torch.equal(rows[3], rows[4])
    for i, sample in enumerate(samples):
        assert torch.equal(rng.uniform(9, sample[None], 6)[0], rows[i])
    assert torch.equal(rng.uniform(9, samples, 3), rows[:, :3])
    assert not torch.equal(rng.uniform(10, samples, 6), rows)


def test_uniform_numbers_are() -> None:
    x = rng.uniform(1, torch.arange(20_000), 5).numpy()
    assert x.min() > 0
    assert x.max() < 1
    # Along samples, along one sample's numbers, and from neighbour to neighbour.
    for column in x.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    assert stats.kstest(x[:4000].ravel(), "uniform").pvalue > 1e-3
    joint = np.histogram2d(x[:-1, 0], x[1:, 0], bins=10, range=[[0, 1]] * 2)[0]
    assert stats.chisquare(joint.ravel()).pvalue > 1e-3
    correlations = np.corrcoef(x, rowvar=False)[np.triu_indices(5, 1)]
    assert np.abs(correlations).max() < 4.5 / 20_000**0.5


@pytest.mark.parametrize("n", [0, 1, 2, 999])
def test_a_permutation_is_one(n: int) -> None:
    assert sorted(rng.permutation(rng.key(n), n)) == list(range(n))


def test_permutations_have_no_favourites() -> None:
    first = np.array([rng.permutation(rng.key(0, "order", epoch), 20) for epoch in range(4000)])
    counts = np.stack([np.bincount(column, minlength=20) for column in first.T])
    for row in counts:  # each place gets each sample equally often
        assert stats.chisquare(row).pvalue > 1e-5
    assert len({tuple(row) for row in first}) == 4000


def test_generators_of_one_key_agree() -> None:
    a, b, c = (torch.rand(4, generator=rng.generator(k)) for k in (2**64 - 1, 2**64 - 1, 3))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
