"""What an export's `config.json` describes: checked before anything of that size is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field, ValidationError, field_validator
from torch import Tensor, nn

from lensdist.data.config import LIGHT_KEEPING
from lensdist.data.transforms import Preprocess
from lensdist.errors import UserError
from lensdist.models.backbones import Backbone
from lensdist.models.classifier import Classifier
from lensdist.models.config import (
    ClassifierConfig,
    EnsembleConfig,
    MaeConfig,
    MaskConfig,
    SuperResolverConfig,
)
from lensdist.models.ensemble import Ensemble
from lensdist.models.mae import MaskedAutoencoder
from lensdist.models.super_resolution import SuperResolver
from lensdist.sealed import first_of, fits
from lensdist.tensors import misfit

PREPROCESS = "preprocess."  # prefix, among the weights, of the preprocessing's own tensors

Config = MaeConfig | ClassifierConfig | EnsembleConfig | SuperResolverConfig
_Text = Annotated[str, Field(max_length=1000)]
_CONFIGS: dict[str, type[Config]] = {
    "mae": MaeConfig,
    "finetune": ClassifierConfig,
    "common": EnsembleConfig,
    "sr": SuperResolverConfig,
}


class _Description(BaseModel):
    """What is read of `config.json`."""

    task: Literal["mae", "finetune", "common", "sr"]
    preset: _Text = ""
    labels: list[_Text]
    model: dict[str, Any]
    preprocessing: dict[str, Any]
    sha256: dict[str, str] = {}
    mask: dict[str, Any] = {}
    metrics: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    init: _Text | None = None
    loss: _Text | None = None

    @field_validator("labels")
    @classmethod
    def _differ(cls, labels: list[str]) -> list[str]:
        if len(set(labels)) != len(labels):
            raise ValueError("a label is given twice")
        return labels


@dataclass(frozen=True)
class Built:
    """What a description stands for."""

    cfg: Config
    preprocess: Preprocess
    mask: MaskConfig
    network: nn.Module
    """On the meta device: without weights."""


def build(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Built:
    """The network that `config.json` describes, which fits the tensors of its file.

    Args:
        description: as read.
        tensors: of the weights' file; on the meta device if they are not read yet.

    Raises:
        ValueError: it describes none that can be used, or not theirs, in one sentence.
    """
    fits(_Description, description)
    task = description["task"]
    try:
        cfg = _CONFIGS[task](**description["model"])
        preprocess = Preprocess.from_state(description["preprocessing"], under(PREPROCESS, tensors))
        mask = MaskConfig(**(description["mask"] if task == "mae" else {}))
    except ValidationError as e:
        raise ValueError(f"{e.title}: {first_of(e)}") from e
    except LookupError as e:
        raise ValueError(f"it lacks {e}") from e
    except (ArithmeticError, TypeError) as e:
        raise ValueError(str(e)[:200]) from e
    _check_preprocess(task, cfg, preprocess)
    layers = _layers(cfg)
    if 2 * layers > len(tensors):  # every layer has a matrix and an offset
        raise ValueError(f"it asks for {layers:,} layers, but there are {len(tensors):,} tensors")
    own = {name: value for name, value in tensors.items() if not name.startswith(PREPROCESS)}
    try:
        with torch.device("meta"):  # takes no memory, whatever sizes are asked for
            network = _network(cfg, len(description["labels"]), preprocess, own)
    except (ArithmeticError, RuntimeError, TypeError, UserError) as e:
        raise ValueError(f"there is no such network: {' '.join(str(e).split())[:200]}") from e
    if problem := misfit(network.state_dict(), own):
        raise ValueError(f"the weights are not those of the network: {problem}")
    return Built(cfg, preprocess, mask, network)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def _check_preprocess(
    task: str,
    cfg: Config,
    preprocess: Preprocess,
) -> None:
    scale, bands, size = preprocess.cfg.scale, cfg.in_channels, cfg.image_size
    if scale == "lens_fit" and (task, bands, size) != ("common", 1, 150):
        raise ValueError("preprocess.scale lens_fit is for the images of the common task")
    if scale not in LIGHT_KEEPING and task == "sr":
        raise ValueError(f"preprocess.scale {scale} does not keep sums of light")
    if scale in ("standard", "asinh") and len(preprocess.mean) not in (1, bands):
        raise ValueError(f"there are {len(preprocess.mean)} means for {bands} bands")
    if (smooth := preprocess.smooth) is not None:
        pixels = bands * size * size
        if smooth.mean.shape != (pixels,) or smooth.rows.shape[1:] != (pixels,):
            raise ValueError(f"the smooth images are not of {bands}x{size}x{size} pixels")


def _layers(cfg: BaseModel) -> int:
    """How many are built, roughly, without building them."""
    found = 0
    for name, value in cfg:
        if name.endswith("depth"):
            found += value
        elif isinstance(value, tuple):  # members, widths of the head
            found += len(value)
        elif isinstance(value, BaseModel):
            found += _layers(value)
    return found


def _network(
    cfg: Config,
    classes: int,
    preprocess: Preprocess,
    weights: Mapping[str, Tensor],
) -> nn.Module:
    if isinstance(cfg, MaeConfig):
        return MaskedAutoencoder(cfg)
    if isinstance(cfg, ClassifierConfig):
        return Classifier(cfg, classes)
    if isinstance(cfg, SuperResolverConfig):
        return SuperResolver(cfg)
    bands, _ = preprocess.cfg.seen(cfg.in_channels, cfg.image_size)

    def members() -> Iterator[Backbone]:
        """Each compared before the next is built: that takes half a second."""
        for k, name in enumerate(cfg.members):
            member = Backbone(name, cfg, classes, bands)
            if problem := misfit(member.state_dict(), under(f"members.{k}.", weights)):
                raise ValueError(f"member {k} is not the {name[:80]} of the weights: {problem}")
            yield member

    return Ensemble(cfg, classes, bands, members())
