"""What a run starts from: preprocessing, and weights that others have trained."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lensdist import rng
from lensdist.config.schema import BaseRun, CommonRun, FinetuneRun, SuperResolutionRun
from lensdist.data.config import LIGHT_KEEPING
from lensdist.data.dataset import PackedSet
from lensdist.data.smooth import fit_smooth
from lensdist.data.transforms import Preprocess
from lensdist.described import PREPROCESS, under
from lensdist.engine.world import World
from lensdist.errors import UserError
from lensdist.export import WEIGHTS, encoder_of, find_export, read_export
from lensdist.exporting.combine import combined
from lensdist.files import sha256
from lensdist.models.ensemble import Ensemble
from lensdist.phases import check_finished
from lensdist.weights.imagenet import imagenet_state

Weights = dict[str, Tensor]


def check_start(cfg: BaseRun, world: World) -> None:
    """What can be told before there is data, which may take minutes to simulate.

    Raises:
        UserError: no such network, or its weights cannot be had or are those of another.
    """
    if not isinstance(cfg, CommonRun):
        return
    with torch.device("meta"):
        shape = Ensemble(cfg.model, 2, cfg.seen_bands)
    shape.check(cfg.preprocess.seen(cfg.model.in_channels, cfg.model.image_size)[1])
    if cfg.init == "imagenet" and not cfg.members_from:
        _imagenet(cfg, 2, world)


def starting_point(
    cfg: BaseRun, packed: PackedSet, labels: tuple[str, ...], world: World
) -> tuple[Preprocess, Weights | None, str | None]:
    """Preprocessing, weights to start from, and a hash that names them.

    A pretrained network brings its own preprocessing: fed with other units, it is worth nothing.

    Raises:
        UserError: what the configuration names is not there, not finished, or of another shape.
    """
    if isinstance(cfg, (FinetuneRun, SuperResolutionRun)) and cfg.encoder is not None:
        check_finished(cfg.encoder, "encoder")
        if isinstance(cfg, FinetuneRun):
            theirs, weights = encoder_of(cfg.encoder, cfg.model, "model")
        else:
            theirs, weights = encoder_of(cfg.encoder, cfg.model.encoder, "model.encoder")
            if theirs.cfg.scale not in LIGHT_KEEPING:
                raise UserError(
                    f"encoder: {cfg.encoder} sees preprocess.scale {theirs.cfg.scale}, which does "
                    "not keep sums of light; pretrain one with configs/mae/pairs.yaml"
                )
        _check_preprocess(cfg, theirs, cfg.encoder)
        return theirs, weights, sha256(find_export(cfg.encoder) / WEIGHTS)
    if isinstance(cfg, CommonRun) and cfg.members_from:
        return _members(cfg, labels)
    how, statistics = cfg.preprocess, packed.manifest.statistics
    residual = how.scale == "residual"
    smooth = fit_smooth(packed, how.smooth_class, how.components) if residual else None
    preprocess = Preprocess(how, statistics.mean, statistics.std, smooth)
    if isinstance(cfg, CommonRun) and cfg.init == "imagenet":
        return preprocess, _imagenet(cfg, len(labels), world), None
    return preprocess, None, None


def _check_preprocess(cfg: BaseRun, theirs: Preprocess, where: Path) -> None:
    if theirs.cfg != cfg.preprocess:
        raise UserError(
            f"preprocess: {cfg.preprocess} is not what {where} was trained with, {theirs.cfg}; "
            "use that"
        )


def _imagenet(cfg: CommonRun, classes: int, world: World) -> Weights:
    """torchvision's weights of all members, by our names; the heads start at random."""
    if world.main:  # one process of a job fetches them, the others find them there
        for name in cfg.model.members:
            imagenet_state(name, cfg.weights.get(name))
    world.barrier()
    with torch.device("meta"):
        shape = Ensemble(cfg.model, classes, cfg.seen_bands)
    initial: Weights = {}
    for k, member in enumerate(shape.backbones):
        file = cfg.weights.get(member.architecture)
        found = member.adopt(imagenet_state(member.architecture, file), head=False)
        initial |= {f"members.{k}.{name}": value for name, value in found.items()}
    return initial


def _members(cfg: CommonRun, labels: tuple[str, ...]) -> tuple[Preprocess, Weights, str]:
    """The members of finished runs, which must agree in all but the networks themselves."""
    for run in cfg.members_from:
        check_finished(run, "members_from")
    runs = [(run, read_export(run)) for run in cfg.members_from]
    description, weights = combined(runs, "logits")
    named = ", ".join(map(str, cfg.members_from))
    if tuple(description["model"]["members"]) != cfg.model.members:
        raise UserError(
            f"members_from: {named} hold {', '.join(description['model']['members'])}, not "
            f"{', '.join(cfg.model.members)}"
        )
    with torch.device("meta"):
        shape = Ensemble(cfg.model, len(labels), cfg.seen_bands)
    wanted = {k: v.shape for k, v in shape.state_dict().items()}
    initial = {k: v for k, v in weights.items() if k.startswith("members.")}
    odd = [name for name, value in initial.items() if wanted.get(name) != value.shape]
    if tuple(description["labels"]) != labels:
        raise UserError(
            f"members_from: {named} tell {', '.join(description['labels'])} apart, not "
            f"{', '.join(labels)}; set data.classes to that, in that order"
        )
    if odd:
        raise UserError(
            f"members_from: {named} are of another shape than model asks for ({odd[0]}); give the "
            "same grey, in_channels and head_dims"
        )
    preprocess = Preprocess.from_state(description["preprocessing"], under(PREPROCESS, weights))
    _check_preprocess(cfg, preprocess, cfg.members_from[0])
    digest = rng.key(*(source["sha256"] for source in description["sources"]))
    return preprocess, initial, f"{digest:016x}"
