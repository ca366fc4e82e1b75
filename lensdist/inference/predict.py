"""Applies a model to files, a few at a time, and writes what it says of each."""

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
from lensdist.inference.frames import Item, read_item
from lensdist.inference.inputs import Input
from lensdist.inference.outputs import Format
from lensdist.inference.sinks import Found, ImageSink, Model, TableSink, Write
from lensdist.inference.tables import write_skipped
from lensdist.utils.errors import RunError, UserError
from lensdist.utils.files import printable

log = logging.getLogger(__name__)

# In memory at a time, unless one image has more; answers may have 16 times as many.
_PIXELS = 1 << 22
Skip = Callable[[Input, str], None]


def predict_files(
    model: Model,
    inputs: Sequence[Input],
    dest: Path,
    batch: int = 64,
    form: Format | None = None,
    overwrite: bool = False,
    hdu: str | None = None,
) -> dict[Input, str]:
    """Predict for every file; what cannot be is said on standard error and listed beside results.

    Args:
        model: see `lensdist.load`.
        inputs: the files.
        dest: a classifier's table (.csv, .parquet), or the folder for images.
        batch: images at a time; those of one shape are predicted together.
        form: of images; None: FITS for FITS, else .npy.
        overwrite: replace results that are there.
        hdu: which image of FITS files, by number or name, or which array of .npz.

    Returns:
        Why each file was skipped, in the order of `inputs`.

    Raises:
        UserError: `dest` or `form` does not suit the model, something would be lost, or nothing
            can be written there; nothing was computed then.
        RunError: results cannot be written any more, or memory ran out.
    """
    kind = ImageSink if model.does.draws else TableSink
    sink = kind(model, inputs, dest, form, overwrite)
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
            readings = _readings(inputs, sink.framed, hdu, skip)
            _stream(model, readings, len(inputs), batch, write, skip)
            stack.close()
            ordered = {one: skipped[one] for one in inputs if one in skipped}
            if ordered:
                write_skipped(sink.skipped, {str(one.path): why for one, why in ordered.items()})
            else:
                sink.skipped.unlink(missing_ok=True)  # of what is overwritten now
        except OSError as error:
            raise RunError(f"cannot write {printable(dest)}: {error.strerror or error}") from error
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
        if sys.stderr.isatty():  # the next line, whatever it says, takes this one's place
            print(f"{done:,} of {files:,} files", end="\r", file=sys.stderr, flush=True)


def _readings(inputs: Sequence[Input], framed: bool, hdu: str | None, skip: Skip) -> Iterator[Item]:
    """The files that can be read."""
    for one in inputs:
        try:
            yield read_item(one, framed, hdu)
        except BadFile as error:
            skip(one, str(error))


def _windows(readings: Iterator[Item], batch: int) -> Iterator[list[Item]]:
    """As many at a time as go together into memory."""
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
    """What the model says of images of one shape; of one that does not suit it, why."""
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
    """An answer, if all of it is numbers; but bad pixels of an image may be blank in it, too."""
    for value in found.values():
        fits = np.isfinite(value)
        if item.bad is not None and value.ndim == 3:
            factor = value.shape[-1] // item.bad.shape[-1]
            fits |= item.bad.repeat(factor, -1).repeat(factor, -2)
        if not fits.all():
            return "the model's answer is not finite: no such image was among those it learnt from"
    return found
