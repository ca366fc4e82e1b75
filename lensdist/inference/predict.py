"""Prediction for files, a few at a time, and writing of the results."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lensdist.data.reading.raw import BadFile
from lensdist.data.reading.readers import ONLY, Choice
from lensdist.inference.comparable import Wanted
from lensdist.inference.frames import Item, read_item
from lensdist.inference.inputs import Input
from lensdist.inference.outputs import Format
from lensdist.inference.sinks import Found, ImageSink, Model, TableSink, Write
from lensdist.inference.tables import write_skipped
from lensdist.utils.errors import RunError, UserError
from lensdist.utils.files import printable

log = logging.getLogger(__name__)

# The pixels in memory at a time, unless one image has more; outputs may have 16 times as many.
_PIXELS = 1 << 22
Skip = Callable[[Input, str], None]


def predict_files(
    model: Model,
    inputs: Sequence[Input],
    dest: Path,
    batch: int = 64,
    form: Format | None = None,
    overwrite: bool = False,
    choice: Choice = ONLY,
    wanted: Wanted | None = None,
    notes: list[str] | None = None,
) -> dict[Input, str]:
    """Predict for every file; log and list the files that cannot be used.

    Args:
        model: see `lensdist.load`.
        inputs: the files.
        dest: a table (.csv, .parquet), or the folder for images.
        batch: images at a time; those of one shape are predicted together.
        form: the format of images; None: FITS for FITS, else .npy.
        overwrite: whether to replace existing results.
        choice: the image of files that hold several.
        wanted: the size and the pixel scale of the training images, which images for a table get;
            None: they are used as they are.
        notes: gets a line on the images that are unlike the training images, if the model can tell.

    Returns:
        The reason for each skipped file, in the order of `inputs`.

    Raises:
        UserError: `dest` or `form` does not suit the model, a file would be lost, or `dest` cannot
            be written; nothing was computed.
        RunError: writing failed, or memory ran out.
    """
    kind = ImageSink if model.does.draws else TableSink
    sink: TableSink | ImageSink = kind(model, inputs, dest, form, overwrite)
    skipped: dict[Input, str] = {}

    def skip(one: Input, reason: str) -> None:
        skipped[one] = printable(reason)
        log.warning("skipped %s: %s", printable(one.path), skipped[one])

    with ExitStack() as stack:
        try:
            write = stack.enter_context(sink.open())
        except OSError as error:
            raise UserError(f"cannot write {printable(dest)}: {error.strerror or error}") from error
        try:
            readings = _readings(inputs, sink.framed, choice, skip, wanted)
            _stream(model, readings, len(inputs), batch, write, skip)
            stack.close()
            ordered = {one: skipped[one] for one in inputs if one in skipped}
            if ordered:
                write_skipped(sink.skipped, {str(one.path): why for one, why in ordered.items()})
            else:
                sink.skipped.unlink(missing_ok=True)  # the list of an earlier run
        except OSError as error:
            raise RunError(f"cannot write {printable(dest)}: {error.strerror or error}") from error
    if notes is not None and len(ordered) < len(inputs):
        notes += sink.notes(len(inputs) - len(ordered))
    return ordered


def _stream(
    model: Model, readings: Iterator[Item], files: int, batch: int, write: Write, skip: Skip
) -> None:
    done = 0
    for items in _windows(readings, batch):
        alike: dict[Any, list[Item]] = {}
        for item in items:
            alike.setdefault((item.reading.image.shape, item.bad is None), []).append(item)
        answers: dict[Input, Found | str] = {}
        for group in alike.values():
            found = _answers(model, group, batch)
            answers.update(zip((item.source for item in group), found, strict=True))
        for item in items:  # in the order of the command line
            answer = answers[item.source]
            if isinstance(answer, str):
                skip(item.source, answer)
            else:
                write(item, answer)
        done += len(items)
        if sys.stderr.isatty():  # the next line replaces this one
            print(f"{done:,} of {files:,} files", end="\r", file=sys.stderr, flush=True)


def _readings(
    inputs: Sequence[Input], framed: bool, choice: Choice, skip: Skip, wanted: Wanted | None
) -> Iterator[Item]:
    """Yield the files that can be read, and made comparable with the training images."""
    for one in inputs:
        try:
            yield read_item(one, framed, choice, None if framed else wanted)
        except BadFile as error:
            skip(one, str(error))


def _windows(readings: Iterator[Item], batch: int) -> Iterator[list[Item]]:
    """Yield lists of as many files as are held in memory at a time."""
    window: list[Item] = []
    pixels = 0
    for item in readings:
        size = item.reading.image.size
        if window and (len(window) == batch or pixels + size > _PIXELS):
            yield window
            window, pixels = [], 0
        window.append(item)
        pixels += size
    if window:
        yield window


def _answers(model: Model, items: Sequence[Item], batch: int) -> list[Found | str]:
    """Return the predictions for images of one shape, or the reason where one does not suit."""
    images = np.stack([item.reading.image for item in items])
    bad = [item.bad for item in items if item.bad is not None]
    more = {"good": ~np.stack(bad)} if bad else {}
    try:
        found = model.predict(images, batch=batch, **more)
    except ValueError as error:
        if len(items) == 1:
            return [str(error)]
        return [answer for item in items for answer in _answers(model, [item], batch)]
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"{len(items)} image(s) of {images.shape[1:]} at a time do not fit into the GPU's "
            "memory: lower --batch, or give --device cpu"
        ) from error
    return [
        _sound({key: value[i] for key, value in found.items()}, item)
        for i, item in enumerate(items)
    ]


def _sound(found: Found, item: Item) -> Found | str:
    """Return a prediction if it is finite outside the input's bad pixels; else the reason."""
    for name, value in found.items():
        if name == "unlike":  # infinite for an image of which nothing can be said
            continue
        fits = np.isfinite(value)
        if item.bad is not None and value.ndim == 3:
            factor = value.shape[-1] // item.bad.shape[-1]
            fits |= item.bad.repeat(factor, -1).repeat(factor, -2)
        if not fits.all():
            return "the prediction is not finite: the model was not trained on such images"
    return found


def wanted_by(model: Model, scale_of_files: float | None = None) -> Wanted:
    """Return the size and pixel scale of a model's training images.

    Args:
        model: the model.
        scale_of_files: arcsec a pixel of files whose header says none.

    Raises:
        UserError: `scale_of_files` is not positive.
    """
    if scale_of_files is not None and not 0 < scale_of_files < float("inf"):
        raise UserError(f"--pixel-scale must be positive, not {scale_of_files:g}")
    scale = (model.description.get("data") or {}).get("pixel_scale_arcsec")
    known = float(scale) if isinstance(scale, int | float) and scale > 0 else None
    bands, *size = model.does.cfg.image_shape
    return Wanted(None if model.does.any_size else (size[0], size[1]), known, scale_of_files, bands)
