"""Tell whether an image is like the training images of several networks that answer as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensdist.export.likeness import LIKENESS, Likeness
from lensdist.tasks.types import Described
from lensdist.utils.tensors import under


@dataclass(frozen=True)
class Several:
    """The mean of what separately trained networks say, as their answer is a mean.

    Attributes:
        members: what each knows of its training images, in the order of the networks.
    """

    members: tuple[Likeness, ...]

    def unlike(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Return how unlike the training images each image is, (B,) float32: above 1, it is.

        `features` are those of all networks, side by side.
        """
        parts = [each.parts.get("features") for each in self.members]
        widths = [0 if part is None else len(part.middle) for part in parts]
        own = dict(vectors)
        features = own.pop("features", None)
        if features is None or features.shape[1] != sum(widths):
            each = [one.unlike(own) for one in self.members]
        else:
            columns = torch.split(features, widths, 1)
            each = [
                one.unlike({**own, "features": mine})
                for one, mine in zip(self.members, columns, strict=True)
            ]
        return torch.stack(each).mean(0)

    def state(self) -> dict[str, Any]:
        """Return the JSON part of the state for `restored`."""
        return {"members": [each.state() for each in self.members]}

    def tensors(self) -> dict[str, Tensor]:
        """Return the other part of the state, by names that begin with `LIKENESS`."""
        return {
            f"{LIKENESS}{i}.{name.removeprefix(LIKENESS)}": value
            for i, each in enumerate(self.members)
            for name, value in each.tensors().items()
        }


AnyLikeness = Likeness | Several


def restored(state: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> AnyLikeness | None:
    """Rebuild from `state()` and an export's tensors; None for exports without it.

    Raises:
        ValueError: they do not fit together.
    """
    if not state or "members" not in state:
        return Likeness.from_state(state, tensors)
    members, listed = [], state["members"]
    for i, one in enumerate(listed if isinstance(listed, list) else ()):
        own = {LIKENESS + name: t for name, t in under(f"{LIKENESS}{i}.", tensors).items()}
        if (member := Likeness.from_state(one, own)) is not None:
            members.append(member)
    if not members:
        raise ValueError("likeness has no members")
    return Several(tuple(members))


def together(runs: Sequence[Described]) -> Several | None:
    """Return what the exports of several networks know; None if one of them knows nothing."""
    found = [restored(description.get("likeness"), weights) for description, weights in runs]
    if None in found:
        return None
    flat: list[Likeness] = []
    for each in found:
        flat += each.members if isinstance(each, Several) else [each] if each else []
    return Several(tuple(flat))
