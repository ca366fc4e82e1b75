"""A small convolutional network for the residuals of fitted lenses: 17,000 parameters."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

LENSNET = "lensnet"
WIDTH = 32


def lensnet(bands: int, dropout: float) -> dict[str, nn.Module]:
    """Build the sections (B, bands, H, W) -> (B, 32), in order.

    The residual of a lens is noise with a few spots and streaks. So the network is shallow, works
    at half the resolution, and takes the mean over all pixels. Classes differ little in that mean,
    so it is normalised before the head.
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
