"""The network of the common task: an average of classifiers, which can be cut after its frozen
part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lensdist.models.backbones import Backbone
from lensdist.models.config import EnsembleConfig
from lensdist.utils.errors import UserError

Features = tuple[Tensor, ...]


class Ensemble(nn.Module):
    """An ensemble (B, C, H, W) -> logits (B, classes).

    `combine: probabilities` returns the logarithm of the members' mean probabilities. These are
    logits too: their softmax is that mean, and their cross-entropy its negative log-likelihood.

    Args:
        cfg: the settings of the ensemble.
        classes: the number of classes.
        bands: the bands after preprocessing, if not `cfg.in_channels`.
        members: the members, in place of those that `cfg` names.

    Raises:
        UserError: a member is not a known classifier.
    """

    def __init__(
        self,
        cfg: EnsembleConfig,
        classes: int,
        bands: int | None = None,
        members: Iterable[Backbone] | None = None,
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self._bands = bands or cfg.in_channels
        self.members = nn.ModuleList(
            members or (Backbone(name, cfg, classes, self._bands) for name in cfg.members)
        )
        if cfg.combine == "learned" and len(cfg.members) > 1:
            self.mix = nn.Parameter(torch.zeros(len(cfg.members)))

    def forward(self, x: Tensor) -> Tensor:
        depths = (0,) * len(self.members)
        return self.combine(self.features(x, depths), depths)

    @property
    def backbones(self) -> list[Backbone]:
        """The members, in order."""
        return [cast(Backbone, member) for member in self.members]

    def features(self, x: Tensor, depths: tuple[int, ...]) -> Features:
        """Compute the outputs of the first `depths[k]` sections of each member k."""
        if self.cfg.resize is not None and self.cfg.resize != x.shape[-1]:
            size = (self.cfg.resize, self.cfg.resize)
            # Antialiased, so that a smaller size averages pixels and does not skip any.
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        found = []
        for member, depth in zip(self.backbones, depths, strict=True):
            y = member.prepare(x)
            for section in list(member.sections.values())[:depth]:
                y = section(y)
            found.append(y)
        return tuple(found)

    def combine(self, features: Features, depths: tuple[int, ...]) -> Tensor:
        """Compute logits from the `features` of the same depths."""
        logits = torch.stack(
            [m(y, d) for m, y, d in zip(self.backbones, features, depths, strict=True)]
        )
        if len(logits) == 1:
            return logits[0]
        if self.cfg.combine == "learned":
            return torch.einsum("k,kbc->bc", self.mix.softmax(0).to(logits.dtype), logits)
        if self.cfg.combine == "probabilities":
            return logits.float().log_softmax(-1).logsumexp(0) - math.log(len(logits))
        return logits.mean(0)

    def frozen(self, trains: Callable[[str], bool]) -> tuple[int, ...]:
        """Return the number of first sections of each member without a parameter that trains."""
        depths = []
        for k, member in enumerate(self.backbones):
            count = 0
            for name, section in member.sections.items():
                prefix = f"members.{k}.sections.{name}."
                if any(trains(prefix + p) for p, _ in section.named_parameters()):
                    break
                count += 1
            depths.append(count)
        return tuple(depths)

    def check(self, image_size: int) -> None:
        """Check that the members can take images of this size; fast on the meta device.

        Raises:
            UserError: one cannot.
        """
        device = next(self.parameters()).device
        x = torch.zeros(2, self._bands, image_size, image_size, device=device)
        try:
            with torch.no_grad():
                shape = self(x).shape
        except Exception as e:  # a network may raise anything if an image is too small
            why = " ".join(str(e).split())[:120]
            raise UserError(
                f"model.members: {', '.join(self.cfg.members)} cannot take images of "
                f"{self.cfg.resize or image_size} pixels a side ({why}); set model.resize=224"
            ) from e
        assert len(shape) == 2


def sections_of(model: Ensemble) -> list[tuple[tuple[str, ...], int]]:
    """Return the sections from the heads back to the stems: parameter prefixes, parameter counts.

    A section holds the next section of every member that has one left.
    """
    stages: list[tuple[tuple[str, ...], int]] = []
    depth = max(len(member.sections) for member in model.backbones)
    for back in range(1, depth + 1):
        prefixes = []
        count = 0
        for k, member in enumerate(model.backbones):
            names = list(member.sections)
            if back <= len(names):
                prefixes.append(f"members.{k}.sections.{names[-back]}.")
                count += sum(p.numel() for p in member.sections[names[-back]].parameters())
        stages.append((tuple(prefixes), count))
    return stages
