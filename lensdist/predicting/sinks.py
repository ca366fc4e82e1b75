"""What a model's answers are written to: one table, or a folder of images (torch-free)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from lensdist import __version__
from lensdist.errors import UserError
from lensdist.predicting.frames import Item
from lensdist.predicting.images import write_image
from lensdist.predicting.inputs import Input
from lensdist.predicting.outputs import (
    Format,
    images_for,
    refuse_losses,
    sigma_beside,
    table_for,
)
from lensdist.predicting.tables import open_table

IMAGE_OF = {"mae": "recon", "sr": "image"}
"""Tasks whose models make images, and what `predict` calls those."""

Found = dict[str, npt.NDArray[Any]]
"""What a model says of one image: arrays by name."""
Write = Callable[[Item, Found], None]


class Model(Protocol):
    """What is asked of a model: see `lensdist.loaded.LoadedModel`."""

    task: str
    labels: tuple[str, ...]
    description: dict[str, Any]

    def predict(self, *args: Any, **kwargs: Any) -> Found: ...


class TableSink:
    """A classifier's table.

    Raises:
        UserError: `dest` is no table's name, or something would be lost.
    """

    framed = False

    def __init__(
        self,
        model: Model,
        inputs: Sequence[Input],
        dest: Path,
        form: Format | None,
        overwrite: bool,
    ) -> None:
        if form is not None:
            raise UserError("--format is for models that make images, and this one classifies")
        table_for(dest)
        self.skipped = dest.with_suffix(".skipped.csv")
        refuse_losses((dest, self.skipped), inputs, overwrite)
        self._dest, self._labels = dest, model.labels

    @contextmanager
    def open(self) -> Iterator[Write]:
        """Where answers go, one by one; all of the table appears at the end, or nothing."""
        with open_table(self._dest, self._labels) as add:
            yield lambda item, found: add(str(item.source.path), found)


class ImageSink:
    """A folder of images.

    Raises:
        UserError: `dest` is no folder, two images would share a file, or something would be lost.
    """

    framed = True

    def __init__(
        self,
        model: Model,
        inputs: Sequence[Input],
        dest: Path,
        form: Format | None,
        overwrite: bool,
    ) -> None:
        self._draws_sigma = model.task == "sr"  # not all do, but then an old one must not stay
        self._paths = images_for(inputs, dest, form or "auto", self._draws_sigma)
        self.skipped = dest / "skipped.csv"
        beside = map(sigma_beside, self._paths.values()) if self._draws_sigma else ()
        results = dict.fromkeys((*self._paths.values(), *beside, self.skipped))
        refuse_losses(results, inputs, overwrite)
        self._dest, self._image = dest, IMAGE_OF[model.task]
        self._description = model.description

    @contextmanager
    def open(self) -> Iterator[Write]:
        """Where answers go, one by one, each into a file of its own."""
        self._dest.mkdir(parents=True, exist_ok=True)
        yield self._write

    def _write(self, item: Item, found: Found) -> None:
        path, image, sigma = self._paths[item.source], found[self._image], found.get("sigma")
        factor = image.shape[-1] // item.reading.image.shape[-1]
        history = _history(self._description, factor)
        write_image(path, image, sigma, item.frame, factor, history)
        if self._draws_sigma and sigma is None and sigma_beside(path) != path:
            sigma_beside(path).unlink(missing_ok=True)


def _history(description: dict[str, Any], factor: int) -> list[str]:
    """Which model made the pixels, and what they mean."""
    weights = str(description["sha256"]["model.safetensors"])
    lines = [
        f"lensdist {__version__}: task {description['task']}, preset {description.get('preset')}",
        f"weights sha256 {weights[:16]}",
    ]
    if factor > 1:
        model = description["model"]
        exact = model.get("exact_means") and model.get("decoder") == "residual"
        means = "averages" if exact else "averages only roughly"
        lines += [
            f"pixel values are means: a block of {factor} x {factor} {means} to the",
            f"input pixel; divide by {factor**2} for flux per pixel",
        ]
    return lines
