"""A masked autoencoder: it reconstructs images in which patches are set to zero.

After He et al. 2022 (arXiv:2111.06377), in two forms. In the recipe of task VI.A masked patches
stay in the sequence, and up-convolutions decode. In that paper the encoder computes visible patches
only, and a small transformer decodes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from lensdist.models.config import EncoderConfig, MaeConfig, prime_factors
from lensdist.models.vit import Block, Encoder, activation, init_linear


class Decoder(nn.Module):
    """A decoder, tokens (B, N, D) -> image (B, C, H, W), of up-convolutions.

    It has one for each prime factor of the patch: three of factor 2 for a patch of 8, factors 2
    and 5 for a patch of 10.
    """

    def __init__(self, cfg: MaeConfig) -> None:
        super().__init__()
        self.grid = cfg.grid
        factors = prime_factors(cfg.patch_size)
        widths = [cfg.dim, *(max(cfg.decoder_dim >> i, 16) for i in range(len(factors)))]
        layers: list[nn.Module] = []
        for (before, after), f in zip(pairwise(widths), factors, strict=True):
            # Kernels overlap by a pixel on each side, so that patch borders do not show.
            layers += [nn.ConvTranspose2d(before, after, f + 2, stride=f, padding=1)]
            layers += [activation(cfg)]
        self.up = nn.Sequential(*layers)
        self.out = nn.Conv2d(widths[-1], cfg.in_channels, 3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        return cast(
            Tensor, self.out(self.up(rearrange(tokens, "b (h w) d -> b d h w", h=self.grid)))
        )


class TokenDecoder(nn.Module):
    """A decoder, tokens (B, M, D) of the patches `keep` (B, M) -> image (B, C, H, W).

    A learned token stands for every other patch.
    """

    def __init__(self, cfg: MaeConfig) -> None:
        super().__init__()
        self.cfg = cfg
        width = cfg.decoder_dim
        self.narrow = nn.Linear(cfg.dim, width)
        self.hidden = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, cfg.grid**2, width))
        block = EncoderConfig(dim=width, heads=cfg.heads, mlp_dim=2 * width, depth=1)
        self.blocks = nn.ModuleList(Block(block) for _ in range(cfg.decoder_depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, cfg.in_channels * cfg.patch_size**2)
        for parameter in (self.hidden, self.position):
            nn.init.trunc_normal_(parameter, std=0.02)
        self.apply(init_linear)

    def forward(self, tokens: Tensor, keep: Tensor) -> Tensor:
        visible = self.narrow(tokens)
        all_ = self.hidden.to(visible.dtype).expand(tokens.shape[0], self.cfg.grid**2, -1)
        all_ = all_.scatter(1, keep[:, :, None].expand_as(visible), visible) + self.position
        for block in self.blocks:
            all_ = block(all_)
        pixels = self.out(self.norm(all_))
        p, g = self.cfg.patch_size, self.cfg.grid
        return cast(
            Tensor, rearrange(pixels, "b (h w) (c p q) -> b c (h p) (w q)", h=g, w=g, p=p, q=p)
        )


class MaskedAutoencoder(nn.Module):
    """An autoencoder: images (B, C, H, W), mask (B, N) true = hidden -> images (B, C, H, W).

    With the token decoder every row of `mask` hides `hidden` patches; without that argument they
    are counted, which makes a GPU wait.
    """

    def __init__(self, cfg: MaeConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg) if cfg.decoder == "upconv" else TokenDecoder(cfg)

    def forward(self, x: Tensor, mask: Tensor, hidden: int | None = None) -> Tensor:
        # Pixels are zeroed in both forms, because a convolutional stem sees across patch borders.
        x = torch.where(pixel_mask(mask, self.cfg.patch_size), 0.0, x)
        if self.cfg.decoder == "upconv":
            return cast(Tensor, self.decoder(self.encoder(x)))
        visible = mask.shape[1] - (int(mask[0].sum()) if hidden is None else hidden)
        keep = mask.to(torch.uint8).sort(dim=1, stable=True).indices[:, :visible]
        return cast(Tensor, self.decoder(self.encoder(x, keep), keep))


def without_sort(network: MaskedAutoencoder, x: Tensor, mask: Tensor, hidden: int) -> Tensor:
    """Compute `network(x, mask, hidden)` without the stable sort, which ONNX lacks."""
    if network.cfg.decoder == "upconv":
        return cast(Tensor, network(x, mask))
    x = torch.where(pixel_mask(mask, network.cfg.patch_size), 0.0, x)
    patches = mask.shape[1]
    # These numbers all differ, so no stable sort is needed.
    place = mask.to(torch.int64) * patches + torch.arange(patches, device=mask.device)
    keep = place.topk(patches - hidden, dim=1, largest=False).indices
    return cast(Tensor, network.decoder(network.encoder(x, keep), keep))


def pixel_mask(mask: Tensor, patch: int) -> Tensor:
    """Convert a row-major patch mask (B, N) to a pixel mask (B, 1, H, W)."""
    side = int(mask.shape[1] ** 0.5)
    grid = rearrange(mask, "b (h w) -> b 1 h w", h=side)
    return grid.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
