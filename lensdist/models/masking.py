"""Masks of the patches to hide: informative ones, random ones, or a mixture.

The information in a patch is the Shannon entropy (bits) of its pixels as 8-bit grey levels, where
the image's minimum and maximum are 0 and 255. It equals `skimage.measure.shannon_entropy` of the
patch. It depends on the image only, so a mask follows its image through any augmentation.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange, reduce
from torch import Tensor

from lensdist.models.config import MaskConfig, masked_count
from lensdist.utils import rng


def grey_levels(images: Tensor) -> Tensor:
    """Compute grey levels (B, C, H, W) -> (B, H, W) int64 in 0..255, scaled for each image."""
    grey = images.float().mean(1)
    low = reduce(grey, "b h w -> b 1 1", "min")
    span = reduce(grey, "b h w -> b 1 1", "max") - low
    stretched = (grey - low) / span.clamp_min(torch.finfo(grey.dtype).tiny)
    # NaN has no grey level; the loss of such an image will be NaN in any case.
    return (stretched * 255).round().nan_to_num(0).clamp(0, 255).long()


def patch_entropy(images: Tensor, patch: int) -> Tensor:
    """Compute the entropy of each patch's grey levels, bits: (B, C, H, W) -> (B, N) row-major."""
    levels = rearrange(grey_levels(images), "b (h p) (w q) -> b (h w) (p q)", p=patch, q=patch)
    counts = torch.zeros(*levels.shape[:2], 256, device=images.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels, dtype=counts.dtype))
    share = counts / levels.shape[2]
    nats: Tensor = -torch.special.xlogy(share, share).sum(2)
    return nats / math.log(2)


def _ranked(images: Tensor, patch: int) -> Tensor:
    """Return patch numbers, the most informative first, (B, N).

    Patches of equal entropy, mostly flat sky, are ordered by brightness, because that order, unlike
    their position, turns with the image.
    """
    light = reduce(images.double(), "b c (h p) (w q) -> b (h w)", "mean", p=patch, q=patch)
    order = light.sort(dim=1, descending=True, stable=True).indices
    entropy = patch_entropy(images, patch).gather(1, order)
    return order.gather(1, entropy.sort(dim=1, descending=True, stable=True).indices)


def make_mask(images: Tensor, patch: int, cfg: MaskConfig, key: int, samples: Tensor) -> Tensor:
    """Draw a patch mask for each image.

    Args:
        images: (B, C, H, W).
        patch: pixels a side of a patch.
        key: from `lensdist.utils.rng.key`.
        samples: (B,) sample numbers; image i's random part depends on `key` and `samples[i]` only.

    Returns:
        (B, N) bool, true = hidden, the same number in every row.
    """
    patches = (images.shape[2] // patch) * (images.shape[3] // patch)
    count = masked_count(cfg, patches)
    informative = round(cfg.informative * count)
    chance = rng.uniform(key, samples, patches)
    if informative:
        top = _ranked(images, patch)[:, :informative]
        chance = chance.scatter(1, top, 2.0)  # above every random number: always chosen
    chosen = chance.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(chance, dtype=torch.bool).scatter_(1, chosen, True)
