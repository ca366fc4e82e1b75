"""A classifier on the MAE's encoder: average pooling over the patch tokens, then a small head."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from lensdist.models.config import ClassifierConfig
from lensdist.models.vit import Encoder


class Classifier(nn.Module):
    """A classifier (B, C, H, W) -> logits (B, classes)."""

    def __init__(self, cfg: ClassifierConfig, classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(cfg)
        # Substructure changes pooled tokens far less than the position of the arc does. Without
        # this norm a few hundred steps from scratch stay at chance (Model II, 100 labels: 0.38
        # against 0.90).
        layers: list[nn.Module] = [nn.BatchNorm1d(cfg.dim, affine=False)] if cfg.head_norm else []
        for before, after in pairwise([cfg.dim, *cfg.head_dims]):
            layers += [nn.Dropout(cfg.head_dropout), nn.Linear(before, after), nn.ReLU()]
        layers += [nn.Dropout(cfg.head_dropout), nn.Linear([cfg.dim, *cfg.head_dims][-1], classes)]
        self.head = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.pooled(x)))

    def pooled(self, x: Tensor) -> Tensor:
        """Compute the mean over the patch tokens: (B, C, H, W) -> (B, D)."""
        return cast(Tensor, self.encoder(x).mean(1))
