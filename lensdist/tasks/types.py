"""The types that tasks and their callers exchange (torch-free)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

    from lensdist.data.config import PreprocessConfig
    from lensdist.data.dataset import PackedSet
    from lensdist.data.sampler import Images
    from lensdist.data.transforms import Preprocess
    from lensdist.distributed.context import DistributedContext

    Batch = dict[str, Tensor]
    Answer = Mapping[str, npt.NDArray[np.generic]]
else:
    Batch = dict
    Answer = Mapping

Described = tuple[dict[str, Any], dict[str, "Tensor"]]
"""The content of an export: its `config.json`, and its tensors by name."""
ReadExport = Callable[[Path], Described]
"""A function that reads the export of a finished run, or one by itself; raises UserError."""
Columns = dict[str, type[str] | type[float]]
"""The columns of a table, by name."""


@dataclass(frozen=True)
class Stage:
    """A part of training in which the same parameters train."""

    epochs: int
    trainable: tuple[str, ...]
    """The prefixes of parameter names; `("",)` matches all."""

    def trains(self, parameter: str) -> bool:
        """Return whether the parameter of that name trains."""
        return parameter.startswith(self.trainable)


@dataclass(frozen=True)
class Split:
    """A network cut in two where its frozen part ends: `rest(*trunk(x))` is `model(x)`."""

    trunk: nn.Module
    """Preprocessed images (B, C, H, W) -> a tuple of tensors (B, …)."""
    rest: nn.Module
    """Those tensors -> the network's output."""


@dataclass(frozen=True)
class Inputs:
    """What a run has before its task starts: data, processes and preprocessing settings."""

    how: PreprocessConfig
    packed: PackedSet
    labels: tuple[str, ...]
    world: DistributedContext
    read: ReadExport
    """Reads the exports of finished runs that the settings name."""
    fetch: bool = True
    """Whether public weights may be fetched from the network."""


@dataclass(frozen=True)
class Start:
    """The preprocessing and the weights that training starts from."""

    preprocess: Preprocess
    weights: dict[str, Tensor] | None = None
    """The weights by the network's parameter names; None: random ones."""
    digest: str | None = None
    """A hash of the finished runs that the weights come from."""


@dataclass(frozen=True)
class Drawing:
    """The input of a task's figures."""

    outputs: Batch
    """The task's outputs for all images of the split."""
    scores: dict[str, Any]
    network: nn.Module
    images: Images
    """The split."""
    pixel_scale: float | None
    """Arcseconds per pixel."""
    folder: Path
    title: str
