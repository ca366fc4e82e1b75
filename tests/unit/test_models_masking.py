"""Masks: exactly as many as configured, of the right patches, and each image's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.measure import shannon_entropy
from torch import Tensor

from lensdist.models.config import MaskConfig, masked_count
from lensdist.models.masking import grey_levels, make_mask, patch_entropy
from lensdist.utils import rng

pytestmark = pytest.mark.unit

KEY = rng.key(0, "mask")


def images(n: int, size: int = 64) -> Tensor:
    """Blobs on a plain background, like lenses: many flat patches, some rich ones."""
    draw = torch.Generator().manual_seed(5)
    axis = torch.linspace(-1, 1, size)
    centre = torch.rand(n, 2, 1, 1, generator=draw) - 0.5
    r2 = (axis[:, None] - centre[:, :1]) ** 2 + (axis - centre[:, 1:]) ** 2
    return 3 * torch.exp(-r2 / 0.05) + 0.02 * torch.rand(n, 1, size, size, generator=draw)


def test_entropy_is_scikit_images() -> None:
    x = torch.cat([images(3), torch.rand(2, 1, 64, 64), torch.zeros(1, 1, 64, 64)])
    ours = patch_entropy(x, 8).reshape(6, 8, 8)
    for image, row in zip(grey_levels(x).numpy().astype(np.uint8), ours.numpy(), strict=True):
        for i in range(8):
            for j in range(8):
                patch = image[8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
                assert row[i, j] == pytest.approx(shannon_entropy(patch), abs=1e-5)


def test_grey_levels_span_each_image_alone() -> None:
    x = images(4) * torch.tensor([1e-9, 1.0, 1e6, 0.0])[:, None, None, None]
    levels = grey_levels(x)
    assert levels[:3].amin((1, 2)).tolist() == [0, 0, 0]
    assert levels[:3].amax((1, 2)).tolist() == [255, 255, 255]
    assert not levels[3].any()
    assert torch.equal(levels[1], grey_levels(x[1:2] * 4 - 3)[0])


def test_the_reference_hides_3_of_64() -> None:
    assert masked_count(MaskConfig(ratio=0.05), 64) == 3
    assert masked_count(MaskConfig(ratio=0.01), 64) == 1


@pytest.mark.parametrize("informative", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("ratio", [0.01, 0.05, 0.5, 0.75, 0.99])
def test_every_image_has_exactly_the_configured_number(ratio: float, informative: float) -> None:
    cfg = MaskConfig(ratio=ratio, informative=informative)
    mask = make_mask(images(20), 8, cfg, KEY, torch.arange(20))
    assert mask.dtype == torch.bool
    assert set(mask.sum(1).tolist()) == {masked_count(cfg, 64)}


def test_informative_masks_are_the_top_of_the_ranking() -> None:
    x = images(10)
    mask = make_mask(x, 8, MaskConfig(ratio=0.05), KEY, torch.arange(10))
    entropy = patch_entropy(x, 8)
    for row, hidden in zip(entropy, mask, strict=True):
        assert row[hidden].min() >= row[~hidden].max()


def test_a_mixture_takes_its_share_from_the_top_and_the_rest_at_random() -> None:
    x = images(1).expand(400, 1, 64, 64)
    cfg = MaskConfig(ratio=0.25, informative=0.5)  # 16 patches: 8 of the top, 8 others
    mask = make_mask(x, 8, cfg, KEY, torch.arange(400))
    often = mask.double().mean(0)
    entropy = patch_entropy(x[:1], 8)[0]
    top, rest = often == 1, often < 1
    assert int(top.sum()) == 8
    assert entropy[top].min() >= entropy[rest].max()
    # Each of the others with chance 8/56, up to 5 standard deviations over 400 draws.
    assert (often[rest] - 8 / 56).abs().max() < 5 * (8 / 56 * 48 / 56 / 400) ** 0.5


@pytest.mark.parametrize("informative", [0.0, 0.5, 1.0])
def test_a_mask_depends_on_key_and_sample_and_not_on_batch_mates(informative: float) -> None:
    cfg = MaskConfig(ratio=0.5, informative=informative)
    x, samples = images(8), torch.tensor([3, 1, 4, 15, 9, 2, 6, 5])
    mask = make_mask(x, 8, cfg, KEY, samples)
    order = torch.tensor([7, 0, 3])
    assert torch.equal(make_mask(x[order], 8, cfg, KEY, samples[order]), mask[order])
    other = make_mask(x, 8, cfg, KEY + 1, samples)
    assert torch.equal(other, mask) == (informative == 1)


def test_an_informative_mask_follows_its_image() -> None:
    x = torch.rand(16, 1, 64, 64)  # noise: no two patches alike
    cfg, samples = MaskConfig(ratio=0.25), torch.arange(16)
    mask = make_mask(x, 8, cfg, KEY, samples).reshape(16, 8, 8)
    entropy = patch_entropy(x, 8)
    cut = entropy.sort(1, descending=True).values
    clear = cut[:, 15] > cut[:, 16]  # without a tie at the border
    assert clear.any()
    for turn in (lambda y: y.flip(-2, -1), lambda y: y.flip(-1), lambda y: y.rot90(1, (-2, -1))):
        turned = make_mask(turn(x), 8, cfg, KEY, samples).reshape(16, 8, 8)
        assert torch.equal(turned[clear], turn(mask)[clear])


def test_a_mask_turns_with_an_image_whose_sky_is_flat() -> None:
    # A faint smooth glow: nearly all patches have an entropy of 0 in 8-bit levels.
    rows = torch.arange(64.0)
    glow = torch.exp(-0.2 * ((rows[:, None] - 20) ** 2 + (rows[None] - 37) ** 2).sqrt())
    image = glow[None, None].double()
    cfg = MaskConfig(ratio=0.9, informative=1.0)
    mask = make_mask(image, 8, cfg, 0, torch.zeros(1))
    turned = make_mask(image.flip(-2, -1), 8, cfg, 0, torch.zeros(1))
    assert torch.equal(turned, mask.flip(1))
