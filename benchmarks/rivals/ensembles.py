"""Build the common task's networks with timm and torchvision, with our weights."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.rivals.items import Item
from benchmarks.rivals.loops import Batch
from lensdist.models.backbones import fold, make_head
from lensdist.models.config import EnsembleConfig
from lensdist.models.ensemble import Ensemble
from lensdist.utils.torchvision_compat import import_torchvision


class Mean(nn.Module):
    """The mean of the networks' logits."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([net(x) for net in self.nets]).mean(0)


def refusal(cfg: EnsembleConfig) -> str:
    """Return why these networks cannot replace lensdist's; empty if they can."""
    if "lensnet" in cfg.members:
        return "lensnet exists in lensdist only"
    if cfg.combine != "logits":
        return f"others average logits: model.combine: {cfg.combine} is lensdist's own"
    return ""


def build(maker: str, cfg: EnsembleConfig, classes: int, weights: dict[str, Tensor]) -> nn.Module:
    """Build lensdist's ensemble as `timm` or `torchvision` does, with its weights."""
    bands = 3 if cfg.grey == "repeat" else cfg.in_channels
    nets = []
    for k, member in enumerate(Ensemble(cfg, classes).backbones):
        models = import_torchvision().models
        if maker == "timm":
            create: Any = import_module("timm").create_model
            net = create(member.architecture, in_chans=bands, num_classes=classes)
        else:
            net = models.get_model(member.architecture, weights=None)
            holder, first = (net, "conv1") if hasattr(net, "fc") else (net.features, "conv0")
            width = getattr(holder, first).out_channels
            setattr(holder, first, nn.Conv2d(bands, width, 7, 2, 3, bias=False))
        place = "fc" if hasattr(net, "fc") else "classifier"
        setattr(net, place, make_head(getattr(net, place).in_features, cfg, classes))
        names = member.names.items()
        net.load_state_dict({theirs: weights[f"members.{k}.{ours}"] for theirs, ours in names})
        nets.append(net)
    return Mean(nets)


def item(pixels: int | None, *, mirror: bool, grey3: bool) -> Item:
    """Return a transform that resizes, mirrors at random and repeats bands, as a notebook does.

    Args:
        pixels: height and width; None: as on disk.
        mirror: whether to mirror half of the images.
        grey3: whether to repeat one band three times.
    """
    import_torchvision()
    from torchvision import transforms

    resize = [transforms.Resize((pixels, pixels))] if pixels is not None else []
    transform = transforms.Compose([*resize, *([transforms.RandomHorizontalFlip()] * mirror)])

    def made(sample: dict[str, Tensor]) -> Batch:
        image = sample["image"]
        return transform(image.expand(3, -1, -1) if grey3 else image), sample["label"]

    return made


def loss(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of (image, label), and the logits."""
    logits = net(batch[0])
    return F.cross_entropy(logits, batch[1]), logits


def one_band(weight: Tensor) -> Tensor:
    """Fold kernels for three bands into one; other weights stay as they are."""
    return fold(weight, 1) if weight.dim() == 4 and weight.shape[1] == 3 else weight
