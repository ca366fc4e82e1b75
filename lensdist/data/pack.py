"""From a folder of image files to a packed set: survey everything, decide, then write (torch-free).

All files are read twice. The first pass finds what is bad, duplicated or odd while nothing has been
written, so the decisions (what is quarantined, who is in which split, whether to go on at all) are
made on the whole set; the second writes. Results come back in order, so `jobs` changes no byte.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from lensdist.data import layouts
from lensdist.data.layouts import Entry, Layout
from lensdist.data.manifest import DType, Manifest
from lensdist.data.packed_writer import PackedWriter, check_scaled
from lensdist.data.quarantine import BadFile, Report
from lensdist.data.readers import Reading
from lensdist.data.staging import check_free
from lensdist.data.survey import (
    Survey,
    agreed,
    check_classes,
    read_all,
    same_shape,
    survey_files,
    without_duplicates,
)
from lensdist.errors import RunError, UserError

_CHUNK = 32  # files a task: enough to hide a queue's latency
_CHUNK_BYTES = 32 << 20  # of pixels that a task may bring back: few, where images are large

T = TypeVar("T")
Progress = Callable[[str, int, int], None]


def pack(
    src: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    seed: int = 0,
    dtype: DType = "float32",
    max_bad: float = 0.01,
    layout: Layout = "auto",
    labels: Sequence[str] | None = None,
    pixel_scale_arcsec: float | None = None,
    psf_fwhm_arcsec: float | None = None,
    zero_point_mag: float | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> tuple[Manifest, Report]:
    """Pack the images of a folder.

    Args:
        src: the folder; see `layouts` for the forms it may have.
        dest: the folder to make.
        seed: of the splits.
        dtype: `float16` is for images scaled to 0..1.
        max_bad: the tolerated fraction of bad files; each is named in `report.json`.
        layout: what to take `src` for.
        labels: class names in label order.
        pixel_scale_arcsec, zero_point_mag: default to what FITS headers agree on.
        psf_fwhm_arcsec: of the images' PSF.
        jobs: processes that read.
        progress: called with (what, done, of).

    Returns:
        The manifest and the report, as written.

    Raises:
        UserError: the input does not make a set; nothing was written.
        RunError: a file changed meanwhile, or the disk is full; nothing is left behind.
    """
    src, dest = Path(src), Path(dest)
    if not src.is_dir():
        raise UserError(f"{src} is not a folder")
    if Path(os.path.realpath(dest)).is_relative_to(src.resolve()):
        raise UserError(f"{dest} lies inside {src}: the next pack would read it as input")
    check_free(dest)
    listing = layouts.find(src, layout, labels)
    report = Report(skipped=listing.skipped)
    for name in listing.strays:
        report.refuse(name, "it lies outside any class or split folder")

    with ExitStack() as stack:
        pool = None
        if jobs > 1 and len(listing.entries) > _CHUNK:
            spawn = multiprocessing.get_context("spawn")  # forking a process with threads may hang
            pool = stack.enter_context(ProcessPoolExecutor(jobs, spawn, _exit_with_parent))
        surveys: dict[Entry, Survey] = {}
        found = _ordered(pool, jobs, survey_files, src, listing.entries, _CHUNK)
        for i, (entry, survey) in enumerate(zip(listing.entries, found, strict=True)):
            if isinstance(survey, Survey):
                surveys[entry] = survey
            else:
                report.refuse(entry.name, survey)
            if progress:
                progress("read", i + 1, len(listing.entries))
        surveys = same_shape(surveys, report)
        surveys = without_duplicates(surveys, report)
        report.check(len(listing.entries) + len(listing.strays), max_bad)
        check_classes(listing, surveys, report)
        for entry, survey in surveys.items():
            check_scaled(dtype, survey.low, survey.high, entry.name)

        scale = agreed("pixel scale", [s.pixel_scale_arcsec for s in surveys.values()], report)
        zero = agreed("zero point", [s.zero_point_mag for s in surveys.values()], report)
        writer = PackedWriter(
            dest,
            labels=listing.labels,
            seed=seed,
            source={"folder": ascii(src.resolve().name)[1:-1], "layout": listing.kind},
            kind=listing.kind,
            pixel_scale_arcsec=scale if pixel_scale_arcsec is None else pixel_scale_arcsec,
            psf_fwhm_arcsec=psf_fwhm_arcsec,
            zero_point_mag=zero if zero_point_mag is None else zero_point_mag,
            dtype=dtype,
        )
        writer.report = report
        stack.enter_context(writer)
        entries = list(surveys)
        try:
            pixels = sum(math.prod(shape) for shape in surveys[entries[0]].shapes)
            chunk = min(_CHUNK, max(1, _CHUNK_BYTES // (4 * pixels)))
            loaded = _ordered(pool, jobs, _load, src, entries, chunk)
            for i, (entry, (sha256, readings)) in enumerate(zip(entries, loaded, strict=True)):
                if sha256 != surveys[entry].sha256:
                    raise RunError(f"{src / entry.name} changed while it was being packed")
                _add(writer, entry, sha256, readings)
                if progress:
                    progress("packed", i + 1, len(entries))
            return writer.finish(), report
        except BadFile as error:
            raise RunError(f"a file of {src} changed while it was being packed: {error}") from error
        except OSError as error:
            raise RunError(f"cannot write {dest}: {error.strerror or error}") from error


def _exit_with_parent() -> None:
    """Workers outlive a killed parent otherwise: they hold both ends of their own queue."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def _ordered(
    pool: ProcessPoolExecutor | None,
    jobs: int,
    task: Callable[[Path, list[Entry]], list[T]],
    root: Path,
    entries: Sequence[Entry],
    size: int,
) -> Iterator[T]:
    """Run `task` on chunks of entries, a few ahead of the consumer; results in entry order."""
    chunks = (list(entries[i : i + size]) for i in range(0, len(entries), size))
    if pool is None:
        for chunk in chunks:
            yield from task(root, chunk)
        return
    ahead: deque[Future[list[T]]] = deque()
    try:
        for chunk in chunks:
            ahead.append(pool.submit(task, root, chunk))
            if len(ahead) > 2 * jobs:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()
    except BrokenProcessPool as error:
        raise RunError("a process that read files was killed; try again with --jobs 1") from error


def _load(root: Path, entries: list[Entry]) -> list[tuple[str, list[Reading]]]:
    return [read_all(root, entry) for entry in entries]


def _add(writer: PackedWriter, entry: Entry, sha256: str, readings: list[Reading]) -> None:
    first = readings[0] if len(readings) == 1 else _with_partner_s_pixels(*readings)
    writer.add(
        first.image,
        label=entry.label,
        name=entry.name,
        mass=first.mass,
        target=readings[1].image if len(readings) > 1 else None,
        badpix=first.badpix,
        weight=first.weight,
        split=entry.split,
        file_sha256=sha256,
    )


def _with_partner_s_pixels(lr: Reading, hr: Reading) -> Reading:
    """LR's reading, whose pixels are bad where any of HR's is, and weigh what HR's do on average.

    Where LR has weights of its own, those count.
    """
    bands, height, width = lr.image.shape
    blocks = (bands, height, hr.image.shape[1] // height, width, hr.image.shape[2] // width)
    badpix, weight = lr.badpix, lr.weight
    if hr.badpix is not None:
        bad = np.asarray(hr.badpix.reshape(blocks).any(axis=(2, 4)))
        badpix = bad if badpix is None else badpix | bad
    if hr.weight is not None and weight is None:
        weight = hr.weight.reshape(blocks).mean(axis=(2, 4))
    return replace(lr, badpix=badpix, weight=weight)
