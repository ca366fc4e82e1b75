"""The common task: an ensemble of torchvision networks, all at once or progressively unfrozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from lensdist.config.schema import CommonRun
from lensdist.data.transforms import Preprocess
from lensdist.errors import UserError
from lensdist.models.ensemble import Ensemble, sections_of
from lensdist.models.split import Part
from lensdist.tasks.base import Split, Stage
from lensdist.tasks.classification import ClassificationTask


class CommonTask(ClassificationTask):
    """Tell the classes apart with an ensemble.

    Args:
        cfg: the run's configuration.
        labels: the classes, in order.
        preprocess: from disk to network.
        initial: weights to start from, by name; what it lacks starts at random.

    Raises:
        UserError: a member cannot take such images, or the stages do not fit its sections.
    """

    name = "common"

    def __init__(
        self,
        cfg: CommonRun,
        labels: tuple[str, ...],
        preprocess: Preprocess,
        initial: dict[str, Tensor] | None,
    ) -> None:
        super().__init__(cfg, labels, preprocess)
        self.cfg = cfg
        self._initial = initial or {}
        with torch.device("meta"):  # its shape, in no time and no memory
            shape = self._network()
        _, size = cfg.preprocess.seen(cfg.model.in_channels, cfg.model.image_size)
        shape.check(size)
        self._sections = sections_of(shape)
        asked = cfg.unfreeze_epochs
        if asked is not None and len(asked) != len(self._sections):
            raise UserError(
                f"unfreeze_epochs has {len(asked)} stages but {', '.join(cfg.model.members)} "
                f"come in {len(self._sections)} sections"
            )
        if cfg.unfreeze == "progressive" and cfg.train.epochs < len(self._sections):
            raise UserError(
                f"train.epochs {cfg.train.epochs} is less than one for each of the "
                f"{len(self._sections)} sections to unfreeze"
            )

    def build(self) -> nn.Module:
        model = self._network()
        unknown = model.load_state_dict(self._initial, strict=False).unexpected_keys
        assert not unknown, unknown  # engine/initial.py has renamed and checked them
        return model

    def stages(self, epochs: int) -> list[Stage]:
        if self.cfg.unfreeze == "all":
            return [Stage(epochs, ("",))]
        shares = self.cfg.unfreeze_epochs or share_out(epochs, [n for _, n in self._sections])
        stages = []
        trainable: tuple[str, ...] = ("mix",)  # the members' weights, where they are learned
        for (prefixes, _), share in zip(self._sections, shares, strict=True):
            trainable += prefixes
            stages.append(Stage(share, trainable))
        return stages

    def split(self, model: nn.Module, trains: Callable[[str], bool]) -> Split | None:
        whole = cast(Ensemble, model)
        depths = whole.frozen(trains)
        if not any(depths):
            return None
        return Split(
            Part(whole, lambda x: whole.features(x, depths)),
            Part(whole, lambda *features: whole.combine(features, depths)),
        )

    def _network(self) -> Ensemble:
        return Ensemble(self.cfg.model, len(self.labels), self.cfg.seen_bands)

    def describe(self) -> dict[str, Any]:
        cfg = self.cfg
        return {
            "model": cfg.model.model_dump(mode="json"),
            "init": "runs" if cfg.members_from else cfg.init,
        }


def share_out(total: int, weights: list[int]) -> list[int]:
    """`total` in whole parts in proportion to `weights`: largest remainder, but at least 1 each."""
    quotas = [total * weight / sum(weights) for weight in weights]
    shares = [max(1, int(quota)) for quota in quotas]
    while sum(shares) < total:
        shares[max(range(len(shares)), key=lambda i: quotas[i] - shares[i])] += 1
    while sum(shares) > total:  # parts that were raised to 1 take from who has most above its due
        above_one = [i for i, share in enumerate(shares) if share > 1]
        shares[max(above_one, key=lambda i: shares[i] - quotas[i])] -= 1
    return shares
