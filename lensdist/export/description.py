"""Check an export's description (`config.json`) before anything of its size is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, ValidationError, field_validator
from torch import Tensor, nn

from lensdist.data.config import PREPROCESS
from lensdist.data.transforms import Preprocess
from lensdist.export.likeness import LIKENESS
from lensdist.tasks.registry import AnyTask, task_class
from lensdist.utils.errors import UserError
from lensdist.utils.plugins import Untrusted
from lensdist.utils.sealed import first_of, fits
from lensdist.utils.tensors import misfit, under

_Text = Annotated[str, Field(max_length=1000)]


class _Description(BaseModel):
    """The part of `config.json` that is read."""

    task: _Text
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
    likeness: dict[str, Any] | None = None

    @field_validator("labels")
    @classmethod
    def _differ(cls, labels: list[str]) -> list[str]:
        if len(set(labels)) != len(labels):
            raise ValueError("a label is given twice")
        return labels


def build(
    description: Mapping[str, Any], tensors: Mapping[str, Tensor], *, thorough: bool = False
) -> tuple[AnyTask, nn.Module]:
    """Build the task and the network that `config.json` describes, for the tensors of its file.

    Args:
        description: as read.
        tensors: of the weights' file; on the meta device if they are not read yet.
        thorough: see `Task`.

    Returns:
        The task, and its network on the meta device, without weights.

    Raises:
        Untrusted: the task or a network is code that the user has not named.
        ValueError: the description cannot be used, or does not match the tensors.
    """
    fits(_Description, description)
    kind = task_class(description["task"])
    try:
        kept = {name: description[name] for name in kind.settings.described if name in description}
        cfg = kind.settings.model_validate(kept)
        preprocess = Preprocess.from_state(description["preprocessing"], under(PREPROCESS, tensors))
        cfg.check_preprocess(preprocess.cfg)
    except ValidationError as e:
        raise ValueError(f"{e.title}: {first_of(e)}") from e
    except LookupError as e:
        raise ValueError(f"it lacks {e}") from e
    except (ArithmeticError, TypeError) as e:
        raise ValueError(str(e)[:200]) from e
    _check_statistics(cfg.image_shape, preprocess)
    layers = _layers(cfg)
    if 2 * layers > len(tensors):  # every layer has a matrix and an offset
        raise ValueError(f"it describes {layers:,} layers, but there are {len(tensors):,} tensors")
    own = network_weights(tensors)
    task = kind(cfg, tuple(description["labels"]), preprocess, thorough=thorough)
    try:
        with torch.device("meta"):  # takes no memory, whatever sizes are given
            network = task.skeleton(own)
    except Untrusted:
        raise
    except (ArithmeticError, RuntimeError, TypeError, UserError) as e:
        raise ValueError(
            f"the description does not make a network: {' '.join(str(e).split())[:200]}"
        ) from e
    if problem := misfit(network.state_dict(), own):
        raise ValueError(f"the weights are not those of the network: {problem}")
    return task, network


def network_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an export that are the network's."""
    return {k: v for k, v in tensors.items() if not k.startswith((PREPROCESS, LIKENESS))}


def _check_statistics(shape: tuple[int, int, int], preprocess: Preprocess) -> None:
    bands, height, width = shape
    if preprocess.cfg.scale in ("standard", "asinh") and len(preprocess.mean) not in (1, bands):
        raise ValueError(f"there are {len(preprocess.mean)} means for {bands} bands")
    if preprocess.smooth is not None and not preprocess.smooth.fits(shape):
        raise ValueError(f"the smooth images are not of {bands}x{height}x{width} pixels")


def _layers(cfg: BaseModel) -> int:
    """Count the layers roughly, without building them."""
    found = 0
    for name, value in cfg:
        if name.endswith("depth"):
            found += value
        elif isinstance(value, tuple):  # members, widths of the head
            found += len(value)
        elif isinstance(value, BaseModel):
            found += _layers(value)
    return found
