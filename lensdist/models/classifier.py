"""Classifier on the MAE's encoder: average pooling over the patch tokens, then a small head."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from lensdist.models.config import ClassifierConfig
from lensdist.models.vit import Encoder


class Classifier(nn.Module):
    """(B, C, H, W) -> logits (B, classes)."""

    def __init__(self, cfg: ClassifierConfig, classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(cfg)
        layers: list[nn.Module] = []
        for before, after in pairwise([cfg.dim, *cfg.head_dims]):
            layers += [nn.Dropout(cfg.head_dropout), nn.Linear(before, after), nn.ReLU()]
        layers += [nn.Dropout(cfg.head_dropout), nn.Linear([cfg.dim, *cfg.head_dims][-1], classes)]
        self.head = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.encoder(x).mean(1)))
