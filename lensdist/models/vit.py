"""A vision transformer encoder with a convolutional patch embedding.

Dosovitskiy et al. 2021 (arXiv:2010.11929) with learned positions and without class token: the tasks
use the patch tokens, by average pooling or as a feature map.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lensdist.models.config import EncoderConfig, prime_factors


class Attention(nn.Module):
    """A multi-head self-attention over the tokens of one image: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._heads(x)
        y = F.scaled_dot_product_attention(q, k, v)
        return cast(Tensor, self.out(rearrange(y, "b h n d -> b n (h d)")))

    def weights(self, x: Tensor) -> Tensor:
        """Compute how much each token takes from each other: (B, N, D) -> (B, heads, N, N)."""
        q, k, _ = self._heads(x)
        return cast(Tensor, (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1))

    def _heads(self, x: Tensor) -> Tensor:
        """Compute queries, keys and values: (3, B, heads, N, D / heads)."""
        qkv = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return cast(Tensor, qkv)


class Block(nn.Module):
    """A transformer layer: attention and MLP, with LayerNorm before each or after each sum.

    `postnorm` computes the same as `nn.TransformerEncoderLayer(..., batch_first=True)` with its
    defaults; the weights have other names.
    """

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        self.postnorm = cfg.block == "postnorm"
        self.norm1 = nn.LayerNorm(cfg.dim)
        self.attention = Attention(cfg.dim, cfg.heads)
        self.norm2 = nn.LayerNorm(cfg.dim)
        self.mlp = nn.Sequential(
            nn.Linear(cfg.dim, cfg.mlp_dim),
            activation(cfg),
            nn.Dropout(cfg.dropout),
            nn.Linear(cfg.mlp_dim, cfg.dim),
        )
        self.drop = nn.Dropout(cfg.dropout)

    def forward(self, x: Tensor) -> Tensor:
        if self.postnorm:
            x = self.norm1(x + self.drop(self.attention(x)))
            return cast(Tensor, self.norm2(x + self.drop(self.mlp(x))))
        x = x + self.drop(self.attention(self.norm1(x)))
        return cast(Tensor, x + self.drop(self.mlp(self.norm2(x))))


class Encoder(nn.Module):
    """An encoder (B, C, H, W) -> (B, N, D), with N = (H / patch)^2 tokens in row-major order."""

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = _embedding(cfg)
        self.position = nn.Parameter(torch.zeros(1, cfg.grid**2, cfg.dim))
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.depth))
        # After a postnorm block the tokens are already normalised.
        self.norm = nn.LayerNorm(cfg.dim) if cfg.block == "prenorm" else nn.Identity()
        nn.init.trunc_normal_(self.position, std=0.02)
        self.apply(init_linear)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode images; with `keep` (B, M) only these tokens, in this order -> (B, M, D)."""
        tokens = rearrange(self.embed(x), "b d h w -> b (h w) d") + self.position
        if keep is not None:
            tokens = tokens.gather(1, keep[:, :, None].expand(-1, -1, tokens.shape[2]))
        for block in self.blocks:
            tokens = block(tokens)
        return cast(Tensor, self.norm(tokens))


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the transformer layers of a network in order; [] if it has none.

    They are the units of sharding, of compilation and of recomputation.
    """
    return [module for module in model.modules() if isinstance(module, Block)]


def _embedding(cfg: EncoderConfig) -> nn.Module:
    """Build the patch embedding (B, C, H, W) -> (B, D, H / patch, W / patch)."""
    if cfg.stem == "patch":
        return nn.Conv2d(cfg.in_channels, cfg.dim, cfg.patch_size, stride=cfg.patch_size)
    factors = prime_factors(cfg.patch_size)
    widths = [cfg.in_channels, *(max(cfg.dim >> i, 16) for i in range(len(factors), 0, -1))]
    layers: list[nn.Module] = []
    for (before, after), f in zip(pairwise(widths), factors, strict=True):
        layers += [nn.Conv2d(before, after, f + 2, stride=f, padding=1, padding_mode="replicate")]
        layers += [nn.GroupNorm(1, after), nn.GELU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], cfg.dim, 1))


def activation(cfg: EncoderConfig) -> nn.Module:
    """Build the activation function of MLPs and of up-convolutions."""
    return nn.GELU() if cfg.block == "prenorm" else nn.ReLU()


def init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
