"""What a run starts from: preprocessing, and weights that others have trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensdist import rng
from lensdist.config.schema import BaseRun, CommonRun, FinetuneRun
from lensdist.data.packed import PackedSet
from lensdist.data.preprocess import Preprocess
from lensdist.data.smooth import fit_smooth
from lensdist.engine.world import World
from lensdist.errors import UserError
from lensdist.export import WEIGHTS, encoder_of, find_export, read_export
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
        shape = Ensemble(cfg.model, classes)
    initial: Weights = {}
    for k, member in enumerate(shape.backbones):
        file = cfg.weights.get(member.architecture)
        found = member.adopt(imagenet_state(member.architecture, file), head=False)
        initial |= {f"members.{k}.{name}": value for name, value in found.items()}
    return initial


def _members(cfg: CommonRun, classes: int) -> tuple[Preprocess, Weights, str]:
    """The members of finished runs, which must agree in all but the networks themselves."""
    with torch.device("meta"):
        wanted = {k: v.shape for k, v in Ensemble(cfg.model, classes).state_dict().items()}
    initial: Weights = {}
    digests = []
    preprocess: Preprocess | None = None
    for k, run in enumerate(cfg.members_from):
        _check_finished("members_from", run)
        description, weights = read_export(run)
        model: dict[str, Any] = description.get("model") or {}
        theirs = model.get("members")
        if description.get("task") != "common" or theirs != [cfg.model.members[k]]:
            raise UserError(
                f"members_from: {run} holds {theirs or description.get('task')}, not the one "
                f"network {cfg.model.members[k]}"
            )
        mine = {
            f"members.{k}.{name.removeprefix('members.0.')}": value
            for name, value in weights.items()
            if name.startswith("members.0.")
        }
        odd = [n for n, v in mine.items() if wanted.get(n) != v.shape]
        if odd:
            raise UserError(
                f"members_from: {odd[0]} of {run} is of another shape than model asks for; give "
                "both the same grey, in_channels, head_dims and classes"
            )
        initial |= mine
        preprocess = preprocess or Preprocess.from_state(description["preprocessing"])
        _check_preprocess(cfg, Preprocess.from_state(description["preprocessing"]), run)
        digests.append(sha256(find_export(run) / WEIGHTS))
    assert preprocess is not None
    return preprocess, initial, f"{rng.key(*digests):016x}"
