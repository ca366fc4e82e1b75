"""Build the vision transformer from torch's own layers, and from timm's, with our weights.

Both do less than they would by default: no dropout of attention weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn

from lensdist.models.classifier import Classifier
from lensdist.models.config import EncoderConfig
from lensdist.models.mae import Decoder, MaskedAutoencoder
from lensdist.models.vit import Encoder
from lensdist.utils.torchvision_compat import import_torchvision

_IN_TORCH = {
    "attention.qkv.weight": "self_attn.in_proj_weight",
    "attention.qkv.bias": "self_attn.in_proj_bias",
    "attention.out": "self_attn.out_proj",
    "mlp.0": "linear1",
    "mlp.3": "linear2",
}
_IN_TIMM = {
    "attention.out": "attn.proj",
    "attention": "attn",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
}


def refusal(cfg: EncoderConfig) -> str:
    """Return why these networks cannot replace lensdist's; empty if they can."""
    if cfg.stem != "patch" or cfg.block != "prenorm":
        return "torch's and timm's transformers go with model.stem: patch and block: prenorm"
    if getattr(cfg, "decoder", "upconv") != "upconv":
        return "no plain network has model.decoder: tokens; use upconv"
    return ""


class PlainEncoder(nn.Module):
    """The recipe's encoder: a convolution, positions, `nn.TransformerEncoder`."""

    def __init__(self, ours: Encoder) -> None:
        super().__init__()
        cfg = ours.cfg
        self.embed, self.norm = deepcopy(ours.embed), deepcopy(ours.norm)
        self.position = deepcopy(ours.position)
        layer = nn.TransformerEncoderLayer(
            cfg.dim, cfg.heads, cfg.mlp_dim, cfg.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, cfg.depth, enable_nested_tensor=False)
        for theirs, mine in zip(self.layers.layers, ours.blocks, strict=True):
            assert isinstance(theirs, nn.TransformerEncoderLayer)
            theirs.self_attn.dropout = 0.0
            theirs.load_state_dict(renamed(mine.state_dict(), _IN_TORCH))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return cast(Tensor, self.norm(self.layers(tokens)))


class TimmEncoder(nn.Module):
    """timm's `VisionTransformer` without class token and head."""

    def __init__(self, ours: Encoder) -> None:
        super().__init__()
        import_torchvision()
        build: Any = import_module("timm.models.vision_transformer").VisionTransformer
        cfg = ours.cfg
        self.net = build(
            img_size=cfg.image_size, patch_size=cfg.patch_size, in_chans=cfg.in_channels,
            num_classes=0, global_pool="", class_token=False, embed_dim=cfg.dim, depth=cfg.depth,
            num_heads=cfg.heads, mlp_ratio=cfg.mlp_dim / cfg.dim, proj_drop_rate=cfg.dropout,
            norm_layer=nn.LayerNorm,
        )  # fmt: skip
        self.net.load_state_dict(
            {
                "pos_embed": ours.position.data,
                **{f"patch_embed.proj.{k}": v for k, v in ours.embed.state_dict().items()},
                **{f"norm.{k}": v for k, v in ours.norm.state_dict().items()},
                **{
                    f"blocks.{i}.{k}": v
                    for i, block in enumerate(ours.blocks)
                    for k, v in renamed(block.state_dict(), _IN_TIMM).items()
                },
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.net(x))


class PlainAutoencoder(nn.Module):
    """The autoencoder: (B, C, H, W), mask (B, N) true = hidden -> reconstruction (B, C, H, W)."""

    def __init__(self, ours: MaskedAutoencoder, encoder: nn.Module) -> None:
        super().__init__()
        self.grid, self.patch = ours.cfg.grid, ours.cfg.patch_size
        self.encoder = encoder
        # It consists of torch's own layers already.
        assert isinstance(ours.decoder, Decoder)  # checked by `refusal`
        self.up, self.out = deepcopy(ours.decoder.up), deepcopy(ours.decoder.out)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        tokens = self.encoder(x.masked_fill(pixels(mask, self.patch), 0.0))
        drawn = tokens.transpose(1, 2).reshape(len(x), -1, self.grid, self.grid)
        return cast(Tensor, self.out(self.up(drawn)))


class PlainClassifier(nn.Module):
    """The classifier (B, C, H, W) -> logits (B, classes): mean of the tokens, our head's layers."""

    def __init__(self, ours: Classifier, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, deepcopy(ours.head)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.encoder(x).mean(1)))


def pixels(mask: Tensor, patch: int) -> Tensor:
    """Turn a square mask of patches (B, N) into one of pixels (B, 1, H, W)."""
    side = math.isqrt(mask.shape[1])
    grid = mask.view(-1, 1, side, side)
    return grid.repeat_interleave(patch, 2).repeat_interleave(patch, 3)


def build(maker: str, ours: nn.Module) -> nn.Module:
    """Build our network as `torch` or `timm` does, with its weights."""
    assert isinstance(ours, MaskedAutoencoder | Classifier)
    encoder = (TimmEncoder if maker == "timm" else PlainEncoder)(ours.encoder)
    if isinstance(ours, MaskedAutoencoder):
        return PlainAutoencoder(ours, encoder)
    return PlainClassifier(ours, encoder)


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return parameters under others' names; the first matching prefix of ours counts."""

    def name_of(name: str) -> str:
        for mine, theirs in names.items():
            if name.startswith(mine):
                return theirs + name[len(mine) :]
        return name

    return {name_of(name): torch.clone(value) for name, value in state.items()}
