"""Masked autoencoder: the encoder sees the image with patches zeroed in its pixels, and an
up-convolution decoder draws the whole image.

After He et al. 2022 (arXiv:2111.06377); unlike there, masked patches stay in the sequence (their
pixels are zero), as the recipe of task VI.A has it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from lensdist.models.config import MaeConfig
from lensdist.models.vit import Encoder, prime_factors


class Decoder(nn.Module):
    """Tokens (B, N, D) -> image (B, C, H, W): an up-convolution for each prime factor of the patch,
    so a patch of 8 is drawn by three doublings, one of 10 by a doubling and a factor of 5.
    """

    def __init__(self, cfg: MaeConfig) -> None:
        super().__init__()
        self.grid = cfg.grid
        factors = prime_factors(cfg.patch_size)
        widths = [cfg.dim, *(max(cfg.decoder_dim >> i, 16) for i in range(len(factors)))]
        layers: list[nn.Module] = []
        for (before, after), f in zip(pairwise(widths), factors, strict=True):
            # Kernels overlap by a pixel on each side, or patch borders would show.
            layers += [nn.ConvTranspose2d(before, after, f + 2, stride=f, padding=1), nn.GELU()]
        self.up = nn.Sequential(*layers)
        self.out = nn.Conv2d(widths[-1], cfg.in_channels, 3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        return cast(
            Tensor, self.out(self.up(rearrange(tokens, "b (h w) d -> b d h w", h=self.grid)))
        )


class MaskedAutoencoder(nn.Module):
    """(images (B, C, H, W), mask (B, N) true = hidden) -> reconstruction (B, C, H, W)."""

    def __init__(self, cfg: MaeConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = pixel_mask(mask, self.cfg.patch_size)
        return cast(Tensor, self.decoder(self.encoder(torch.where(hidden, 0.0, x))))


def pixel_mask(mask: Tensor, patch: int) -> Tensor:
    """A patch mask (B, N), row-major, as a pixel mask (B, 1, H, W)."""
    side = int(mask.shape[1] ** 0.5)
    grid = rearrange(mask, "b (h w) -> b 1 h w", h=side)
    return grid.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
