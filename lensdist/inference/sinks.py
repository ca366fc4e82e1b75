"""Where answers of a model are written: a table, or a folder of images (torch-free)."""

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
from lensdist.utils.errors import UserError

Found = dict[str, npt.NDArray[Any]]
"""The answer to one image: arrays by name."""
Write = Callable[[Item, Found], None]


class Model(Protocol):
    """What is asked of a model: see `lensdist.export.model.LoadedModel`."""

    does: AnyTask
    description: dict[str, Any]

    def predict(self, *args: Any, **kwargs: Any) -> Found: ...


class TableSink:
    """A table with a row for each image.

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
            raise UserError("--format is for models that draw images, and this one fills a table")
        table_for(dest)
        self.skipped = dest.with_suffix(".skipped.csv")
        refuse_losses((dest, self.skipped), inputs, overwrite)
        self._dest, self._task = dest, model.does

    @contextmanager
    def open(self) -> Iterator[Write]:
        """Where answers go, one by one; all of the table appears at the end, or nothing."""
        with open_table(self._dest, self._task.columns) as add:
            yield lambda item, found: add(str(item.source.path), self._task.row(found))


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
        # Not every model of such a task draws sigma, but then an old file must not stay.
        self._draws_sigma = "sigma" in model.does.draws
        self._paths = images_for(inputs, dest, form or "auto", self._draws_sigma)
        self.skipped = dest / "skipped.csv"
        beside = map(sigma_beside, self._paths.values()) if self._draws_sigma else ()
        results = dict.fromkeys((*self._paths.values(), *beside, self.skipped))
        refuse_losses(results, inputs, overwrite)
        self._dest, self._task = dest, model.does
        self._description = model.description

    @contextmanager
    def open(self) -> Iterator[Write]:
        """Where answers go, one by one, each into a file of its own."""
        self._dest.mkdir(parents=True, exist_ok=True)
        yield self._write

    def _write(self, item: Item, found: Found) -> None:
        path, image, sigma = (
            self._paths[item.source],
            found[self._task.draws[0]],
            found.get("sigma"),
        )
        factor = image.shape[-1] // item.reading.image.shape[-1]
        more = self._task.history(factor) if factor > 1 else []
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
