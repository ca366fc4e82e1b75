"""Train super-resolution in a plain loop: the losses of lensdist's network and of EDSR."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.rivals.items import Item
from benchmarks.rivals.loops import Batch, Loss
from lensdist.data.augment import turn, views
from lensdist.data.config import AugmentConfig


def refusal(cfg: Any) -> str:
    """Return why plain loops cannot replace this run; empty if they can."""
    if cfg.learn != "hr" or cfg.preprocess.scale != "minmax":
        return "plain loops go with learn: hr and preprocess.scale: minmax"
    return ""


def resolver_loss(cfg: Any) -> Loss:
    """Return the loss of a `SuperResolver` on (LR, HR), both scaled by LR's minimum and range."""

    def loss(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        lr, hr = batch
        low, high = lr.amin((1, 2, 3), keepdim=True), lr.amax((1, 2, 3), keepdim=True)
        lr, hr = (lr - low) / (high - low), (hr - low) / (high - low)
        drawn: Tensor = net(lr)
        image, ln_sigma = drawn.chunk(2, 1) if cfg.model.sigma else (drawn, None)
        square = (image - hr) ** 2
        value: Tensor = square.mean()
        if cfg.loss == "poisson":
            around = F.avg_pool2d(lr, 3, 1, 1, count_include_pad=False)
            value = 1000 * (square / (F.interpolate(around, hr.shape[-2:]) + cfg.floor)).mean()
        if ln_sigma is not None:
            pull = (image.detach() - hr) * torch.exp(-ln_sigma)
            value = value + (pull**2 / 2 + ln_sigma).mean() + math.log(2 * math.pi) / 2
        return value, drawn

    return loss


def edsr_loss(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the L1 loss of unscaled images, as in the paper."""
    drawn = net(batch[0])
    return F.l1_loss(drawn, batch[1]), drawn


def turned_item(augment: AugmentConfig) -> Item:
    """Return a transform to (LR, HR) of one pair, turned and mirrored at random."""
    ways = views(augment)

    def made(sample: dict[str, Tensor]) -> Batch:
        way = ways[int(torch.randint(len(ways), ()))]
        return turn(sample["image"], way), turn(sample["target"], way)

    return made


def turned_batch(loss: Loss, augment: AugmentConfig) -> Loss:
    """Return the loss of a batch that is turned and mirrored as one, which is cheap."""
    ways = views(augment)

    def of(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        way = ways[int(torch.randint(len(ways), ()))]
        return loss(net, tuple(turn(images, way) for images in batch))

    return of
