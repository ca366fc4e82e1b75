"""What a run starts from: preprocessing, and weights that others have trained."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lensdist import rng
from lensdist.config.schema import BaseRun, CommonRun, FinetuneRun
from lensdist.data.packed import PackedSet
from lensdist.data.preprocess import Preprocess
from lensdist.data.smooth import fit_smooth
from lensdist.engine.world import World
from lensdist.errors import UserError
from lensdist.export import PREPROCESS, WEIGHTS, encoder_of, find_export, read_export, under
from lensdist.exporting.combine import combined
from lensdist.files import sha256
from lensdist.models.ensemble import Ensemble
from lensdist.phases import completed
from lensdist.weights.imagenet import imagenet_state

Weights = dict[str, Tensor]


def starting_point(
    cfg: BaseRun, packed: PackedSet, classes: int, world: World
) -> tuple[Preprocess, Weights | None, str | None]:
    """Preprocessing, weights to start from, and a hash that names them.

    A pretrained network brings its own preprocessing: fed with other units, it is worth nothing.

    Raises:
        UserError: what the configuration names is not there, not finished, or of another shape.
    """
    if isinstance(cfg, FinetuneRun) and cfg.encoder is not None:
        _check_finished("encoder", cfg.encoder)
        theirs, weights = encoder_of(cfg.encoder, cfg.model)
        _check_preprocess(cfg, theirs, cfg.encoder)
        return theirs, weights, sha256(find_export(cfg.encoder) / WEIGHTS)
    if isinstance(cfg, CommonRun) and cfg.members_from:
        return _members(cfg, classes)
    how, statistics = cfg.preprocess, packed.manifest.statistics
    residual = how.scale == "residual"
    smooth = fit_smooth(packed, how.smooth_class, how.components) if residual else None
    preprocess = Preprocess(how, statistics.mean, statistics.std, smooth)
    if isinstance(cfg, CommonRun) and cfg.init == "imagenet":
        return preprocess, _imagenet(cfg, classes, world), None
    return preprocess, None, None


def _check_finished(key: str, run: Path) -> None:
    if (run / "export").is_dir() and completed(run) is None:
        raise UserError(f"{key}: {run} is not finished; run its command again first")


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


def _members(cfg: CommonRun, classes: int) -> tuple[Preprocess, Weights, str]:
    """The members of finished runs, which must agree in all but the networks themselves."""
    for run in cfg.members_from:
        _check_finished("members_from", run)
    runs = [(run, read_export(run)) for run in cfg.members_from]
    description, weights = combined(runs, "logits")
    named = ", ".join(map(str, cfg.members_from))
    if tuple(description["model"]["members"]) != cfg.model.members:
        raise UserError(
            f"members_from: {named} hold {', '.join(description['model']['members'])}, not "
            f"{', '.join(cfg.model.members)}"
        )
    with torch.device("meta"):
        shape = Ensemble(cfg.model, classes, cfg.seen_bands)
    wanted = {k: v.shape for k, v in shape.state_dict().items()}
    initial = {k: v for k, v in weights.items() if k.startswith("members.")}
    odd = [name for name, value in initial.items() if wanted.get(name) != value.shape]
    if odd or len(description["labels"]) != classes:
        raise UserError(
            f"members_from: {named} are of another shape than model asks for"
            f"{f' ({odd[0]})' if odd else ''}; give the same grey, in_channels, head_dims and "
            "classes"
        )
    preprocess = Preprocess.from_state(description["preprocessing"], under(PREPROCESS, weights))
    _check_preprocess(cfg, preprocess, cfg.members_from[0])
    digest = rng.key(*(source["sha256"] for source in description["sources"]))
    return preprocess, initial, f"{digest:016x}"
