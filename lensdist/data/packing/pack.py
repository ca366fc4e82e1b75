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
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from lensdist.data.manifest import DType, Manifest
from lensdist.data.packing import layouts
from lensdist.data.packing.layouts import Entry, Layout, Listing
from lensdist.data.packing.report import BadFile, Report
from lensdist.data.packing.survey import (
    Survey,
    agreed,
    check_classes,
    read_all,
    refuse,
    same_shape,
    survey_files,
    without_duplicates,
)
from lensdist.data.packing.writer import PackedWriter, check_scaled
from lensdist.data.reading.readers import Reading, check_choice
from lensdist.errors import RunError, UserError
from lensdist.files import printable, to_json, write_atomic
from lensdist.sealed import read_json
from lensdist.staging import check_free

_REPORT_BYTES = 1 << 30  # of an earlier report, at most
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
    hdu: str | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> tuple[Manifest, Report]:
    """Pack the images of a folder.

    When that fails after all files were looked at, `report_beside(dest)` says what was found.

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
        hdu: which image of FITS files, by number or name, or which array of .npz.
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
        raise UserError(f"{printable(src)} is not a folder")
    if Path(os.path.realpath(dest)).is_relative_to(src.resolve()):
        raise UserError(
            f"{printable(dest)} lies inside {printable(src)}: the next pack would read it as input"
        )
    check_free(dest)
    listing = layouts.find(src, layout, labels)
    report = Report(skipped=listing.skipped)
    names = [name for e in listing.entries for name in (e.name, e.target) if name is not None]
    report.files = len(names) + len(listing.strays)
    check_choice(hdu, names)
    for name in listing.strays:
        report.refuse(name, "it lies outside any class or split folder")

    with ExitStack() as stack:
        pool = None
        if jobs > 1 and len(listing.entries) > _CHUNK:
            spawn = multiprocessing.get_context("spawn")  # forking a process with threads may hang
            pool = stack.enter_context(ProcessPoolExecutor(jobs, spawn, _exit_with_parent))
        surveys: dict[Entry, Survey] = {}
        found = _ordered(pool, jobs, partial(survey_files, hdu), src, listing.entries, _CHUNK)
        for i, (entry, survey) in enumerate(zip(listing.entries, found, strict=True)):
            if isinstance(survey, Survey):
                surveys[entry] = survey
            else:
                refuse(report, entry, survey)
            if progress:
                progress("read", i + 1, len(listing.entries))
        try:
            surveys = _chosen(listing, surveys, report, max_bad, dtype)
        except UserError as error:
            raise UserError(f"{error}{_write_beside(dest, report)}") from error
        if _is_report(earlier := report_beside(dest)):  # of a failure that is mended now
            with suppress(OSError):
                earlier.unlink()

        scale = agreed("pixel scale", [s.pixel_scale_arcsec for s in surveys.values()], report)
        zero = agreed("zero point", [s.zero_point_mag for s in surveys.values()], report)
        writer = PackedWriter(
            dest,
            labels=listing.labels,
            seed=seed,
            source={"folder": ascii(src.resolve().name)[1:-1], "layout": listing.kind, "hdu": hdu},
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
            loaded = _ordered(pool, jobs, partial(_load, hdu), src, entries, chunk)
            for i, (entry, (sha256, readings)) in enumerate(zip(entries, loaded, strict=True)):
                if sha256 != surveys[entry].sha256:
                    raise RunError(
                        f"{printable(src / entry.name)} changed while it was being packed"
                    )
                _add(writer, entry, sha256, readings)
                if progress:
                    progress("packed", i + 1, len(entries))
            return writer.finish(), report
        except BadFile as error:
            raise RunError(
                f"a file of {printable(src)} changed while it was being packed: {error}"
            ) from error
        except OSError as error:
            raise RunError(f"cannot write {printable(dest)}: {error.strerror or error}") from error


def report_beside(dest: Path) -> Path:
    """Where a pack that makes no set says which files it found: `DEST.report.json`."""
    dest = Path(os.path.abspath(dest))
    return dest.with_name(f"{dest.name}.report.json")


def _is_report(path: Path) -> bool:
    try:
        return {"files", "quarantined", "skipped"} <= read_json(path, _REPORT_BYTES).keys()
    except (OSError, ValueError):
        return False


def _write_beside(dest: Path, report: Report) -> str:
    """Write the report of a failure; the sentence that says where, or why not."""
    path = report_beside(dest)
    if os.path.lexists(path) and not _is_report(path):
        return f" (no report: {printable(path)} is another file)"
    try:
        write_atomic(path, to_json(report.as_json()) + "\n")
    except OSError as error:
        return f" (no report: cannot write {printable(path)}: {error.strerror})"
    return f" All files: {printable(path)}"


def _chosen(
    listing: Listing,
    surveys: dict[Entry, Survey],
    report: Report,
    max_bad: float,
    dtype: DType,
) -> dict[Entry, Survey]:
    """What becomes of the set; the rest is named in the report.

    Raises:
        UserError: too many files are bad, or what is left does not make a set.
    """
    surveys = without_duplicates(same_shape(surveys, report), report)
    report.check(max_bad)
    check_classes(listing, surveys, report)
    for entry, survey in surveys.items():
        check_scaled(dtype, survey.low, survey.high, entry.name)
    return surveys


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


def _load(hdu: str | None, root: Path, entries: list[Entry]) -> list[tuple[str, list[Reading]]]:
    return [read_all(root, entry, hdu) for entry in entries]


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
