"""Ways to enlarge images without an MAE."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.rivals.edsr import Edsr, train_edsr
from experiments.baselines import INTERPOLATIONS, LinearFilter, bilinear, nearest
from lensdist.models.resample import block_means

pytestmark = pytest.mark.unit


def blobs(n: int, size: int, bands: int = 1) -> Tensor:
    """(n, bands, size, size) smooth images in 0..1, each band of its own."""
    noise = torch.randn(n, bands, size, size, generator=torch.Generator().manual_seed(3))
    smooth = F.avg_pool2d(F.avg_pool2d(noise, 5, 1, 2), 5, 1, 2)
    return (smooth - smooth.amin()) / (smooth.amax() - smooth.amin())


@pytest.mark.parametrize("factor", [2, 3])
def test_interpolations_keep_flat_and_sloping_light(factor: int) -> None:
    slope = torch.arange(8.0).expand(2, 3, 8, 8)
    inside = slice(2 * factor, -2 * factor)
    wanted = (torch.arange(8 * factor) + 0.5) / factor - 0.5
    for name, enlarged in INTERPOLATIONS.items():
        assert enlarged(slope, factor).shape == (2, 3, 8 * factor, 8 * factor)
        torch.testing.assert_close(
            enlarged(torch.ones(1, 1, 8, 8), factor), torch.ones(1, 1, 8 * factor, 8 * factor)
        )
        if name != "nearest":
            found = enlarged(slope, factor)[0, 0, 0]
            torch.testing.assert_close(found[inside], wanted[inside], atol=1e-5, rtol=0)
    torch.testing.assert_close(block_means(nearest(slope, factor), factor), slope)


@pytest.mark.parametrize(("factor", "bands", "kernel"), [(2, 1, 7), (3, 2, 3)])
def test_linear_filter_is_found_from_what_it_made(factor: int, bands: int, kernel: int) -> None:
    """Sub-pixel (i, j) is written out here: where each kernel's values end up is part of it."""
    torch.manual_seed(0)
    kernels = torch.randn(factor, factor, kernel, kernel, dtype=torch.float64)
    lr = torch.randn(9, bands, 10, 12, dtype=torch.float64)
    padded = F.pad(lr, [kernel // 2] * 4, mode="replicate")
    hr = torch.empty(9, bands, factor * 10, factor * 12, dtype=torch.float64)
    for i in range(factor):
        for j in range(factor):
            one = kernels[i, j].expand(bands, 1, kernel, kernel)
            hr[..., i::factor, j::factor] = F.conv2d(padded, one, groups=bands)
    found = LinearFilter.fit(lr, hr, factor, kernel=kernel, batch=4)
    torch.testing.assert_close(found.kernels, kernels.flatten(0, 1)[:, None], rtol=0, atol=1e-9)
    torch.testing.assert_close(found(lr), hr, rtol=0, atol=1e-8)
    torch.testing.assert_close(found(lr.float()), hr.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("factor", [2, 3])
def test_linear_filter_is_never_worse_than_interpolation(factor: int) -> None:
    hr = blobs(12, 24 * factor, 2)
    hr = hr + 0.01 * torch.randn(hr.shape, generator=torch.Generator().manual_seed(1))
    lr = block_means(hr, factor)
    of_filter = F.mse_loss(LinearFilter.fit(lr, hr, factor)(lr), hr)
    for enlarged in INTERPOLATIONS.values():
        assert of_filter < F.mse_loss(enlarged(lr, factor), hr)


def test_edsr_is_as_large_as_the_papers_baseline() -> None:
    # In its authors' EDSR-PyTorch: 1.37 M, 1.55 M and 1.52 M, for three bands.
    counts = [sum(p.numel() for p in Edsr(3, factor).parameters()) for factor in (2, 3, 4)]
    assert counts == [1_369_859, 1_554_499, 1_517_571]


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_edsr_enlarges_by_the_factor_and_knows_the_unit(factor: int) -> None:
    torch.manual_seed(0)
    edsr = Edsr(2, factor, width=8, blocks=2, residual_scale=0.1)
    x = torch.rand(3, 2, 9, 11)
    drawn = edsr(x)
    assert drawn.shape == (3, 2, 9 * factor, 11 * factor)
    edsr.mean.fill_(5.0)
    edsr.std.fill_(100.0)
    torch.testing.assert_close(edsr(100 * x + 5), 100 * drawn + 5, rtol=1e-5, atol=1e-4)


def test_training_edsr_lowers_the_loss_and_can_be_repeated() -> None:
    hr = blobs(16, 24)
    lr = block_means(hr, 2)

    def trained(steps: int, seed: int = 0) -> Edsr:
        return train_edsr(lr, hr, steps=steps, batch=4, seed=seed, width=8, blocks=1, rate=2e-3)

    before = torch.get_rng_state()
    first, again, other, one = trained(60), trained(60), trained(60, seed=1), trained(1)
    assert torch.equal(before, torch.get_rng_state())
    for mine, theirs in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(first.head.weight, other.head.weight)
    with torch.no_grad():
        assert F.l1_loss(first(lr), hr) < 0.5 * F.l1_loss(one(lr), hr)


def test_bilinear_is_of_centres_not_of_corners() -> None:
    torch.testing.assert_close(
        bilinear(torch.tensor([[[[0.0, 4.0]]]]), 2)[0, 0, 0], torch.tensor([0.0, 1.0, 3.0, 4.0])
    )
