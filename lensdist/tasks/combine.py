"""Combination of separately trained networks of the common task into one ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensdist.data.config import PREPROCESS
from lensdist.models.config import EnsembleConfig
from lensdist.phases import WEIGHTS
from lensdist.tasks.types import Described
from lensdist.utils.errors import UserError
from lensdist.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_OWN = ("members", "combine", "head_dropout")
"""The settings of a model in which combined runs may differ."""


def combined(runs: Sequence[tuple[Path, Described]], how: str) -> Described:
    """Return the description and weights of the ensemble of all members of finished runs.

    Args:
        runs: finished runs of task common, each with its export.
        how: average the members' `logits`, or their `probabilities`.

    Raises:
        UserError: the runs differ in images, preprocessing or classes.
    """
    leader, (first, shared) = runs[0]
    model = _model(leader, first, first["task"])
    preprocess = {k: v for k, v in shared.items() if k.startswith(PREPROCESS)}
    members: list[str] = []
    weights: dict[str, Tensor] = dict(preprocess)
    sources = []
    for run, (description, theirs) in runs:
        own = _model(run, description, first["task"])
        _refuse_differences(leader, _facts(first, model), run, _facts(description, own))
        _refuse_other_basis(leader, preprocess, run, theirs)
        weights |= _renumbered(theirs, len(members))
        members += own.members
        sources.append(
            {
                "path": str(run),
                "members": list(own.members),
                "sha256": description["sha256"][WEIGHTS],
                "metrics": description.get("metrics"),
                "data": description.get("data"),
            }
        )
    data = [source["data"] for source in sources]
    facts = {
        "task": first["task"],
        "preset": "combined",
        "labels": first["labels"],
        "preprocessing": first["preprocessing"],
        "metrics": {"selected_by": "nothing: separately trained", "val": None, "step": None},
        "data": data[0] if all(one == data[0] for one in data) else None,
        "model": {**model.model_dump(mode="json"), "members": members, "combine": how},
        "init": "separately trained",
        "positive": first.get("positive"),
        "sources": sources,
    }
    return facts, weights


def _renumbered(weights: dict[str, Tensor], first: int) -> dict[str, Tensor]:
    """Return the members' weights only, with member 0 renamed to member `first` and so on."""
    found = {}
    for name, value in weights.items():
        if name.startswith("members."):
            _, number, rest = name.split(".", 2)
            found[f"members.{int(number) + first}.{rest}"] = value
    return found


def _model(run: Path, description: dict[str, Any], task: str) -> EnsembleConfig:
    if description["task"] != task:
        raise UserError(
            f"{run} is of task {description['task']}; only runs of task {task} can be combined"
        )
    model = EnsembleConfig(**description["model"])
    if model.combine == "learned" and len(model.members) > 1:
        raise UserError(
            f"{run} has learned weights of its members, which an ensemble of several runs cannot "
            "keep; combine runs of one network each"
        )
    return model


def _facts(description: dict[str, Any], model: EnsembleConfig) -> dict[str, Any]:
    """Return the settings that combined runs must share, by name."""
    how = dict(description.get("preprocessing") or {})
    how.pop("limits", None)  # of each run's own training images; those of the first are kept
    # These scales depend on the image only: the other settings have no effect.
    if how.get("scale") in ("minmax", "none") and not how.get("normalise"):
        how = {"scale": how["scale"]}
    settings = model.model_dump(mode="json", exclude=set(_OWN))
    return {
        "labels": description.get("labels"),
        **{f"preprocessing.{k}": v for k, v in how.items()},
        **{f"model.{k}": v for k, v in settings.items()},
    }


def _refuse_differences(
    one: Path, mine: dict[str, Any], other: Path, theirs: dict[str, Any]
) -> None:
    for name in [*mine, *theirs]:
        if mine.get(name) != theirs.get(name):
            raise UserError(
                f"{one} and {other} cannot be combined: {name} is {mine.get(name)} in the one and "
                f"{theirs.get(name)} in the other; train them with the same value"
            )


def _refuse_other_basis(
    one: Path, mine: dict[str, Tensor], other: Path, theirs: dict[str, Tensor]
) -> None:
    """Check that runs share the tensors that `preprocess.scale: residual` subtracts."""
    if any(
        name not in theirs or not torch.equal(value, theirs[name]) for name, value in mine.items()
    ):
        raise UserError(
            f"{one} and {other} cannot be combined: their preprocessing subtracts different smooth "
            "parts; train them with the same data"
        )
