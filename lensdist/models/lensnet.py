"""A small convolutional network for what fitted lenses leave: 17,000 parameters."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

LENSNET = "lensnet"
WIDTH = 32


def lensnet(bands: int, dropout: float) -> dict[str, nn.Module]:
    """Sections (B, bands, H, W) -> (B, 32), in order.

    The residual of a lens is noise but for a few spots and streaks, so the network is shallow, sees
    half the resolution, and takes the mean over all pixels. What tells the classes apart is a small
    part of that mean: it is normalised before the head.
    """
    return OrderedDict(
        stem=nn.Sequential(nn.AvgPool2d(2), *_layer(bands, 16, 5)),
        block1=nn.Sequential(*_layer(16, 16), nn.AvgPool2d(2)),
        block2=nn.Sequential(
            *_layer(16, 32), *_layer(32, WIDTH), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.BatchNorm1d(WIDTH, affine=False), nn.Dropout(dropout),
        ),
    )  # fmt: skip


def _layer(before: int, after: int, kernel: int = 3) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    ]
