"""Destinations of predictions: a table, or a folder of images (torch-free)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from lensdist import __version__
from lensdist.inference.frames import Item
from lensdist.inference.images import write_image
from lensdist.inference.inputs import Input
from lensdist.inference.outputs import (
    Format,
    images_for,
    refuse_losses,
    sigma_beside,
    table_for,
)
from lensdist.inference.tables import open_table
from lensdist.tasks.registry import AnyTask
from lensdist.tasks.types import Columns
from lensdist.utils.errors import UserError

Found = dict[str, npt.NDArray[Any]]
"""The prediction for one image: arrays by name."""
Write = Callable[[Item, Found], None]
_UNKNOWN = (
    "whether the images are like the training images is not known: the export is imported, older "
    "or of a checkpoint, or its run had fewer than 20 validation images"
)


class Model(Protocol):
    """The interface of a model that is used here: see `lensdist.export.model.LoadedModel`."""

    does: AnyTask
    description: dict[str, Any]

    @property
    def likeness(self) -> object:
        """What tells images unlike the training images; None: nothing does."""
        ...

    def predict(self, *args: Any, **kwargs: Any) -> Found: ...


class TableSink:
    """A table with a row for each image.

    Raises:
        UserError: `dest` is not the name of a table, or a file would be lost.
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
            raise UserError("--format is for models that make images; this one writes a table")
        table_for(dest)
        self.skipped = dest.with_suffix(".skipped.csv")
        refuse_losses((dest, self.skipped), inputs, overwrite)
        self._dest, self._task = dest, model.does
        self._measured = model.does.preprocess.columns
        self._limits = model.does.preprocess.limits or {}
        self._flagged = 0
        self._known = bool(self._limits) or model.likeness is not None

    @contextmanager
    def open(self) -> Iterator[Write]:
        """Open the table for single rows; it appears at the end, or not at all."""
        columns: Columns = dict(self._task.columns)
        columns |= dict.fromkeys((*self._measured, "unlike", "flag"), float)
        columns |= {"flagged_by": str, "changes": str}
        with open_table(self._dest, columns) as add:

            def write(item: Item, found: Found) -> None:
                row = [*self._own(found), *self._measures(found), item.changes]
                add(str(item.source.path), row)

            yield write

    def notes(self, done: int) -> list[str]:
        """Return a line on how many of the `done` images are unlike the training images."""
        if not self._known:
            return [_UNKNOWN]
        return [f"{self._flagged:,} of {done:,} images are unlike the training images (see flag)"]

    def _own(self, found: Found) -> list[str | float | None]:
        """Return the task's columns; what means nothing for a flagged image is left out."""
        row: list[str | float | None] = [*self._task.row(found)]
        if not found.get("flag", False):
            return row
        kinds, claims = self._task.columns, self._task.claims
        return [
            value if name not in claims else "?" if kinds[name] is str else None
            for name, value in zip(kinds, row, strict=True)
        ]

    def _measures(self, found: Found) -> list[str | float | None]:
        """Return what was measured in an image, and by which of it the image is flagged."""
        values = {name: float(found[name]) for name in self._measured}
        if not self._known:
            return [*values.values(), None, None, ""]
        flag = bool(found.get("flag", False))
        self._flagged += flag
        unlike = float(found["unlike"]) if "unlike" in found else None
        compared = {**values, "unlike": 0.0 if unlike is None else unlike}
        limits = {**self._limits, "unlike": (0.0, 1.0)}
        odd = [
            k for k, v in compared.items() if k in limits and not limits[k][0] <= v <= limits[k][1]
        ]
        return [*values.values(), unlike, int(flag), " ".join(odd)]


class ImageSink:
    """A folder of images.

    Raises:
        UserError: `dest` is not a folder, two images would share a file, or one would be lost.
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
        # A model without sigma must not leave the sigma file of an earlier run.
        self._draws_sigma = "sigma" in model.does.draws
        self._paths = images_for(inputs, dest, form or "auto", self._draws_sigma)
        self.skipped = dest / "skipped.csv"
        beside = map(sigma_beside, self._paths.values()) if self._draws_sigma else ()
        results = dict.fromkeys((*self._paths.values(), *beside, self.skipped))
        refuse_losses(results, inputs, overwrite)
        self._dest, self._task = dest, model.does
        self._description = model.description
        self._flagged, self._known = 0, model.likeness is not None

    @contextmanager
    def open(self) -> Iterator[Write]:
        """Open the folder for single images, each in its own file."""
        self._dest.mkdir(parents=True, exist_ok=True)
        yield self._write

    def notes(self, done: int) -> list[str]:
        """Return a line on how many of the `done` images are unlike the training images."""
        if not self._known:  # frames of any size are never compared
            return [] if self._task.any_size else [_UNKNOWN]
        return [f"{self._flagged:,} of {done:,} images are unlike the training images"]

    def _write(self, item: Item, found: Found) -> None:
        path, image, sigma = (
            self._paths[item.source],
            found[self._task.draws[0]],
            found.get("sigma"),
        )
        self._flagged += bool(found.get("flag", False))
        factor = image.shape[-1] // item.reading.image.shape[-1]
        more = self._task.history(factor) if factor > 1 else []
        if found.get("flag", False):
            more = [*more, "the input is unlike the images that the model was trained on"]
        history = _history(self._description) + more
        write_image(path, image, sigma, item.frame, factor, history)
        if self._draws_sigma and sigma is None and sigma_beside(path) != path:
            sigma_beside(path).unlink(missing_ok=True)


def _history(description: dict[str, Any]) -> list[str]:
    """Return the lines that name the model that made the pixels."""
    weights = str(description["sha256"]["model.safetensors"])
    return [
        f"lensdist {__version__}: task {description['task']}, preset {description.get('preset')}",
        f"weights sha256 {weights[:16]}",
    ]
