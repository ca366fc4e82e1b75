"""EDSR, a network for super-resolution without an MAE, and a plain loop that trains it."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lensdist.data.augment import turn
from lensdist.models.config import prime_factors


class Edsr(nn.Module):
    """EDSR (Lim et al. 2017, arXiv:1707.02921): (N, C, H, W) -> (N, C, f H, f W).

    It has residual blocks without BatchNorm at LR's resolution, then sub-pixel convolutions. The
    paper subtracts the mean of its data, and has pixels between 0 and 255. Those of lenses have any
    unit, so here the network sees them in standard deviations of the data.

    Args:
        bands: C.
        factor: f.
        width: channels; the paper's baseline has 64, its largest 256.
        blocks: residual blocks; the paper's baseline has 16, its largest 32.
        residual_scale: factor on a block's output; the paper's largest has 0.1.
        mean, std: of the data's pixels, in their units.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        bands: int,
        factor: int,
        width: int = 64,
        blocks: int = 16,
        residual_scale: float = 1.0,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        self.head = _conv(bands, width)
        self.body = nn.Sequential(
            *(_Block(width, residual_scale) for _ in range(blocks)), _conv(width, width)
        )
        up: list[nn.Module] = []
        for f in prime_factors(factor):
            up += [_conv(width, width * f**2), nn.PixelShuffle(f)]
        self.tail = nn.Sequential(*up, _conv(width, bands))

    def forward(self, x: Tensor) -> Tensor:
        head = self.head((x - self.mean) / self.std)
        return cast(Tensor, self.tail(head + self.body(head)) * self.std + self.mean)


class _Block(nn.Module):
    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.scale * self.body(x))


def _conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)


def train_edsr(
    lr: Tensor,
    hr: Tensor,
    *,
    steps: int,
    batch: int,
    seed: int,
    width: int = 16,
    blocks: int = 4,
    rate: float = 4e-3,
    device: torch.device | str = "cpu",
) -> Edsr:
    """Train in a plain loop: Adam, L1, random pairs, turned and mirrored, a cosine to 0.

    The same seed gives the same weights on a CPU.

    Args:
        lr: (N, C, H, W).
        hr: (N, C, f H, f W) in the same units.
        steps: of the optimizer.
        batch: pairs per step.
        seed: of the weights, the pairs and their turns.
        width, blocks: of the network.
        rate: learning rate of the first step. The default was the best of 1e-3, 2e-3 and 4e-3 for
            2,500 steps of 4 pairs at the default size; the paper's, for its sizes, is 1e-4.
        device: where to train.
    """
    factor = hr.shape[-1] // lr.shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, std = lr.mean().item(), lr.std().item()
        model = Edsr(lr.shape[1], factor, width, blocks, mean=mean, std=std).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(lr), (batch,), generator=draw).tolist()
        ways = (torch.rand(batch, 3, generator=draw) < 0.5).tolist()
        x, y = (
            torch.stack([turn(images[i], way) for i, way in zip(rows, ways, strict=True)])
            for images in (lr, hr)
        )
        loss = F.l1_loss(model(x.to(device)), y.to(device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.eval()
