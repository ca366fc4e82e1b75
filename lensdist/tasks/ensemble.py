"""Task `common`: an ensemble of image classifiers, which may be unfrozen progressively."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from pydantic import Field, model_validator

from lensdist.data.config import PreprocessConfig
from lensdist.models.config import EnsembleConfig
from lensdist.tasks.classification import ClassificationTask, ClassifierSettings
from lensdist.tasks.encoder import refuse_other_preprocess
from lensdist.tasks.settings import Remedy, Shape
from lensdist.tasks.types import Described, Inputs, ReadExport, Split, Stage, Start
from lensdist.utils.errors import UserError
from lensdist.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lensdist.config.schema import BaseRun
    from lensdist.distributed.context import DistributedContext
    from lensdist.models.ensemble import Ensemble


class EnsembleSettings(ClassifierSettings):
    """Classification by an ensemble of torchvision networks (common task)."""

    model: EnsembleConfig = EnsembleConfig()
    init: Literal["imagenet", "random"] = Field(
        "imagenet",
        description="The weights to start from. imagenet: torchvision's IMAGENET1K_V1, which "
        "networks of timm and your own do not have.",
    )
    weights: dict[str, Path] = Field(
        {},
        description="Torchvision's .pth files by network name, for machines without internet.",
    )
    members_from: tuple[Path, ...] = Field(
        (), description="Finished runs of one network each, from which the members start instead."
    )
    unfreeze: Literal["all", "progressive"] = Field(
        "all",
        description="The parts that train. all: everything at once; progressive: first the heads, "
        "then one more section per stage, back to the stem (the recipe).",
    )
    unfreeze_epochs: tuple[int, ...] | None = Field(
        None,
        description="The epochs of each stage, from the heads back. null: train.epochs divided in "
        "proportion to the parameters of each section, at least 1 each.",
    )

    @property
    def pools_into_batchnorm(self) -> bool:
        return True

    def starts_from(self) -> dict[str, Path | tuple[Path, ...]]:
        return {"members_from": self.members_from} if self.members_from else {}

    def named_weights(self) -> dict[str, Path]:
        return {f"weights.{name}": file for name, file in self.weights.items()}

    def remedy(self, shape: Shape, read: ReadExport) -> Remedy | None:
        if self.members_from and shape != self.image_shape:
            return Remedy(
                reason="no setting changes that: the networks of members_from take no other images"
            )
        return super().remedy(shape, read)

    def fitting(self, shape: Shape, *more: str) -> Remedy:
        folds = self.model.grey == "repeat" and shape[0] not in (1, 3)
        return super().fitting(shape, *more, *(["model.grey=fold"] if folds else []))

    def check_preprocess(self, how: PreprocessConfig) -> None:
        bands, size, _ = self.image_shape
        if how.scale == "lens_fit" and (bands, size) != (1, 150):
            raise ValueError(
                "preprocess.scale: lens_fit fits one band of 150x150 pixels, as in the common "
                f"task, not {bands} of {size}x{size}: set preprocess.scale=minmax"
            )

    @model_validator(mode="after")
    def _weights_go_together(self) -> Self:
        unknown = sorted(set(self.weights) - set(self.model.members))
        if unknown:
            raise ValueError(f"weights: {unknown[0]} is not one of model.members")
        if self.weights and (self.init != "imagenet" or self.members_from):
            raise ValueError("weights are ImageNet's: they need init: imagenet, no members_from")
        if self.members_from and len(self.members_from) != len(self.model.members):
            raise ValueError(
                f"members_from names {len(self.members_from)} runs for "
                f"{len(self.model.members)} members"
            )
        if self.unfreeze_epochs is not None:
            if self.unfreeze != "progressive":
                raise ValueError("unfreeze_epochs needs unfreeze: progressive")
            if min(self.unfreeze_epochs, default=0) < 1:
                raise ValueError("unfreeze_epochs must be 1 or more each")
        return self

    def check_run(self, run: BaseRun) -> None:
        if self.unfreeze_epochs is not None and sum(self.unfreeze_epochs) != run.train.epochs:
            raise ValueError(
                f"unfreeze_epochs adds up to {sum(self.unfreeze_epochs)}, not to "
                f"train.epochs {run.train.epochs}"
            )


class EnsembleTask(ClassificationTask[EnsembleSettings]):
    """Classification with an ensemble."""

    name = "common"
    settings = EnsembleSettings

    @classmethod
    def check_settings(
        cls, cfg: EnsembleSettings, how: PreprocessConfig, world: DistributedContext
    ) -> None:
        _shape(cfg, how, 2).check(how.seen(cfg.model.in_channels, cfg.model.image_size)[1])
        if cfg.init == "imagenet" and not cfg.members_from:
            _imagenet(cfg, how, 2, world)

    @classmethod
    def start(cls, cfg: EnsembleSettings, given: Inputs) -> Start:
        if cfg.members_from:
            return _members(cfg, given.how, given.labels, given.read)
        start = super().start(cfg, given)
        if cfg.init == "imagenet" and given.fetch:
            classes = len(given.labels)
            return Start(start.preprocess, _imagenet(cfg, given.how, classes, given.world))
        return start

    def network(self) -> Ensemble:
        return self._ensemble()

    def skeleton(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        from lensdist.models.backbones import Backbone
        from lensdist.utils.tensors import misfit, under

        cfg, classes = self.cfg.model, len(self.labels)

        def members() -> Any:
            # Each is compared before the next is built, which takes half a second.
            for k, name in enumerate(cfg.members):
                member = Backbone(name, cfg, classes, self._bands)
                if problem := misfit(member.state_dict(), under(f"members.{k}.", tensors)):
                    raise ValueError(f"member {k} is not the {name[:80]} of the weights: {problem}")
                yield member

        return self._ensemble(members())

    def stages(self, epochs: int) -> list[Stage]:
        if self.cfg.unfreeze == "all":
            return [Stage(epochs, ("",))]
        from lensdist.models.ensemble import sections_of

        with torch.device("meta"):
            sections = sections_of(self._ensemble())
        members, asked = ", ".join(self.cfg.model.members), self.cfg.unfreeze_epochs
        if asked is not None and len(asked) != len(sections):
            raise UserError(
                f"unfreeze_epochs has {len(asked)} stages but {members} have {len(sections)} "
                "sections"
            )
        if epochs < len(sections):
            raise UserError(
                f"train.epochs {epochs} is less than one epoch for each of the {len(sections)} "
                "sections to unfreeze"
            )
        shares = asked or share_out(epochs, [n for _, n in sections])
        stages = []
        trainable: tuple[str, ...] = ("mix",)  # the weights of the members, if learned
        for (prefixes, _), share in zip(sections, shares, strict=True):
            trainable += prefixes
            stages.append(Stage(share, trainable))
        return stages

    def split(self, model: nn.Module, trains: Callable[[str], bool]) -> Split | None:
        from lensdist.models.split import Part

        whole = cast("Ensemble", model)
        depths = whole.frozen(trains)
        if not any(depths):
            return None
        return Split(
            Part(whole, lambda x: whole.features(x, depths)),
            Part(whole, lambda *features: whole.combine(features, depths)),
        )

    def compared(self, model: nn.Module) -> Sequence[nn.Module] | None:
        whole = cast("Ensemble", model)
        # A network of one section is the user's own, whose head is not known.
        heads = [m.sections["head"] for m in whole.backbones if len(m.sections) > 1]
        return heads or super().compared(model)

    def attention(self, model: nn.Module, seen: Tensor) -> Tensor | None:
        """Compute the mean of the members that can tell."""
        from lensdist.models.looks import looks

        whole = cast("Ensemble", model)
        inputs = whole.features(seen, (0,) * len(whole.backbones))
        each = [looks(m, x) for m, x in zip(whole.backbones, inputs, strict=True)]
        known = [found for found in each if found is not None]
        return torch.stack(known).mean(0) if known else None

    @property
    def init(self) -> str:
        return "runs" if self.cfg.members_from else self.cfg.init

    @classmethod
    def combine(cls, runs: Sequence[tuple[Path, Described]], how: str) -> Described:
        from lensdist.tasks.combine import combined

        return combined(runs, how)

    @property
    def _bands(self) -> int:
        model = self.cfg.model
        return self.preprocess.cfg.seen(model.in_channels, model.image_size)[0]

    def _ensemble(self, members: Any = None) -> Ensemble:
        from lensdist.models.ensemble import Ensemble

        return Ensemble(self.cfg.model, len(self.labels), self._bands, members)


def share_out(total: int, weights: list[int]) -> list[int]:
    """Divide `total` in proportion to `weights` by largest remainder; each part is at least 1."""
    quotas = [total * weight / sum(weights) for weight in weights]
    shares = [max(1, int(quota)) for quota in quotas]
    while sum(shares) < total:
        shares[max(range(len(shares)), key=lambda i: quotas[i] - shares[i])] += 1
    while sum(shares) > total:  # parts raised to 1 take from the part furthest above its quota
        above_one = [i for i, share in enumerate(shares) if share > 1]
        shares[max(above_one, key=lambda i: shares[i] - quotas[i])] -= 1
    return shares


def _shape(cfg: EnsembleSettings, how: PreprocessConfig, classes: int) -> Ensemble:
    """Build the network on the meta device, which takes no memory."""
    from lensdist.models.ensemble import Ensemble

    bands, _ = how.seen(cfg.model.in_channels, cfg.model.image_size)
    with torch.device("meta"):
        return Ensemble(cfg.model, classes, bands)


def _imagenet(
    cfg: EnsembleSettings, how: PreprocessConfig, classes: int, world: DistributedContext
) -> dict[str, Tensor]:
    """Return torchvision's weights of all members by our names; heads are left random."""
    from lensdist.weights.imagenet import imagenet_state

    for name in cfg.model.members:
        if ":" in name or "/" in name:
            raise UserError(f"init: imagenet has no weights of {name}; set init=random")
    if world.main:  # one process downloads them for all
        for name in cfg.model.members:
            imagenet_state(name, cfg.weights.get(name))
    world.barrier()
    initial: dict[str, Tensor] = {}
    for k, member in enumerate(_shape(cfg, how, classes).backbones):
        file = cfg.weights.get(member.architecture)
        found = member.adopt(imagenet_state(member.architecture, file), head=False)
        initial |= {f"members.{k}.{name}": value for name, value in found.items()}
    return initial


def _members(
    cfg: EnsembleSettings, how: PreprocessConfig, labels: tuple[str, ...], read: ReadExport
) -> Start:
    """Read the members of finished runs, which must agree in all but the networks themselves."""
    from lensdist.data.config import PREPROCESS
    from lensdist.data.transforms import Preprocess
    from lensdist.phases import check_finished
    from lensdist.tasks.combine import combined
    from lensdist.utils import rng
    from lensdist.utils.tensors import under

    for run in cfg.members_from:
        check_finished(run, "members_from")
    runs = [(run, read(run)) for run in cfg.members_from]
    description, weights = combined(runs, "logits")
    named = ", ".join(map(str, cfg.members_from))
    if tuple(description["model"]["members"]) != cfg.model.members:
        raise UserError(
            f"members_from: {named} hold {', '.join(description['model']['members'])}, not "
            f"{', '.join(cfg.model.members)}"
        )
    wanted = {k: v.shape for k, v in _shape(cfg, how, len(labels)).state_dict().items()}
    initial = {k: v for k, v in weights.items() if k.startswith("members.")}
    odd = [name for name, value in initial.items() if wanted.get(name) != value.shape]
    if tuple(description["labels"]) != labels:
        raise UserError(
            f"members_from: {named} have the classes {', '.join(description['labels'])}, not "
            f"{', '.join(labels)}; set data.classes to these, in this order"
        )
    if odd:
        raise UserError(
            f"members_from: {named} have another shape than model sets ({odd[0]}); give the "
            "same grey, in_channels and head_dims"
        )
    preprocess = Preprocess.from_state(description["preprocessing"], under(PREPROCESS, weights))
    refuse_other_preprocess(how, preprocess, cfg.members_from[0])
    digest = rng.key(*(source["sha256"] for source in description["sources"]))
    return Start(preprocess, initial, f"{digest:016x}")
