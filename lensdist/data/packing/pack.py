"""Pack a folder of image files: survey all, decide, then write (torch-free).

All files are read twice. The first pass finds what is bad, duplicated or odd before anything is
written, so the decisions (which files are quarantined, which split a sample is in, whether to go on
at all) are made on the whole set; the second pass writes. Results come back in order, so the
number of processes changes no byte.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from lensdist.data.manifest import DType, Manifest
from lensdist.data.packing import layouts
from lensdist.data.packing.layouts import Entry, Layout, Listing
from lensdist.data.packing.parallel import OrderedPool
from lensdist.data.packing.report import Report, ReportBeside
from lensdist.data.packing.survey import Survey, agreed, choose, read_all, refuse, survey_files
from lensdist.data.packing.writer import Instrument, PackedWriter, Sample
from lensdist.data.reading.raw import BadFile
from lensdist.data.reading.readers import Reading, check_choice
from lensdist.utils.errors import RunError, UserError
from lensdist.utils.files import printable
from lensdist.utils.staging import check_free

_CHUNK = 32  # files per task: enough to hide a queue's latency
_CHUNK_BYTES = 32 << 20  # of pixels that a task may send back: few files, where images are large

Progress = Callable[[str, int, int], None]
"""Called with (what is done: `read` or `packed`, files done, files in all)."""


@dataclass(frozen=True, slots=True)
class PackOptions:
    """The options of `lensdist pack`."""

    seed: int = 0
    """Seed of the splits."""
    dtype: DType = "float32"
    """`float16` is for images scaled to 0..1."""
    max_bad: float = 0.01
    """Tolerated fraction of bad files; each is named in `report.json`."""
    layout: Layout = "auto"
    """The layout to take the folder for."""
    labels: Sequence[str] | None = None
    """Class names in label order."""
    hdu: str | None = None
    """The image of FITS files, by number or name, or the array of .npz."""
    instrument: Instrument = field(default_factory=Instrument)
    """Unset pixel scale and zero point default to what the FITS headers agree on."""


def pack(
    src: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    options: PackOptions | None = None,
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> tuple[Manifest, Report]:
    """Pack the images of a folder.

    If it fails after all files were read, `DEST.report.json` names the bad ones.

    Args:
        src: the folder; see `layouts` for the forms it may have.
        dest: the folder to make.
        options: see `PackOptions`.
        jobs: number of processes that read.
        progress: see `Progress`.

    Returns:
        The manifest and the report, as written.

    Raises:
        UserError: the input does not make a set; nothing was written.
        RunError: a file changed meanwhile, or the disk is full; nothing is left behind.
    """
    src, dest, options = Path(src), Path(dest), options or PackOptions()
    progress = progress or (lambda what, done, of: None)
    _check_places(src, dest)
    listing = layouts.find(src, options.layout, options.labels)
    report = _new_report(listing, options.hdu)
    with OrderedPool(jobs if len(listing.entries) > _CHUNK else 1) as pool:
        surveys = _survey_all(pool, listing, options, report, progress)
        beside = ReportBeside(dest)
        try:
            surveys = choose(listing, surveys, report, options.max_bad, options.dtype)
        except UserError as error:
            raise UserError(f"{error}{beside.write(report)}") from error
        beside.remove()
        instrument = _instrument(options.instrument, surveys, report)
        with PackedWriter(
            dest,
            labels=listing.labels,
            seed=options.seed,
            source={
                "folder": ascii(src.resolve().name)[1:-1],
                "layout": listing.kind,
                "hdu": options.hdu,
            },
            kind=listing.kind,
            instrument=instrument,
            dtype=options.dtype,
            report=report,
        ) as writer:
            try:
                _write_all(writer, pool, src, surveys, options.hdu, progress)
                return writer.finish(), report
            except BadFile as error:
                raise RunError(
                    f"a file of {printable(src)} changed while it was being packed: {error}"
                ) from error
            except OSError as error:
                raise RunError(
                    f"cannot write {printable(dest)}: {error.strerror or error}"
                ) from error


def _check_places(src: Path, dest: Path) -> None:
    if not src.is_dir():
        raise UserError(f"{printable(src)} is not a folder")
    if Path(os.path.realpath(dest)).is_relative_to(src.resolve()):
        raise UserError(
            f"{printable(dest)} lies inside {printable(src)}: the next pack would read it as input"
        )
    check_free(dest)


def _new_report(listing: Listing, hdu: str | None) -> Report:
    report = Report(skipped=listing.skipped)
    names = [name for entry in listing.entries for name in entry.files]
    report.files = len(names) + len(listing.strays)
    check_choice(hdu, names)
    for name in listing.strays:
        report.refuse(name, "it lies outside any class or split folder")
    return report


def _survey_all(
    pool: OrderedPool, listing: Listing, options: PackOptions, report: Report, progress: Progress
) -> dict[Entry, Survey]:
    surveys: dict[Entry, Survey] = {}
    entries = listing.entries
    found = pool.map(partial(survey_files, listing.root, options.hdu), entries, _CHUNK)
    for i, (entry, survey) in enumerate(zip(entries, found, strict=True)):
        if isinstance(survey, Survey):
            surveys[entry] = survey
        else:
            refuse(report, entry, survey)
        progress("read", i + 1, len(entries))
    return surveys


def _instrument(given: Instrument, surveys: dict[Entry, Survey], report: Report) -> Instrument:
    """Complete the user's settings by those on which all files agree."""
    scale = agreed("pixel scale", [s.pixel_scale_arcsec for s in surveys.values()], report)
    zero = agreed("zero point", [s.zero_point_mag for s in surveys.values()], report)
    return replace(
        given,
        pixel_scale_arcsec=(
            scale if given.pixel_scale_arcsec is None else given.pixel_scale_arcsec
        ),
        zero_point_mag=zero if given.zero_point_mag is None else given.zero_point_mag,
    )


def _write_all(
    writer: PackedWriter,
    pool: OrderedPool,
    src: Path,
    surveys: dict[Entry, Survey],
    hdu: str | None,
    progress: Progress,
) -> None:
    entries = list(surveys)
    pixels = sum(math.prod(shape) for shape in surveys[entries[0]].shapes)
    chunk = min(_CHUNK, max(1, _CHUNK_BYTES // (4 * pixels)))
    loaded = pool.map(partial(_load, src, hdu), entries, chunk)
    for i, (entry, (sha256, readings)) in enumerate(zip(entries, loaded, strict=True)):
        if sha256 != surveys[entry].sha256:
            raise RunError(f"{printable(src / entry.name)} changed while it was being packed")
        writer.add(_sample(entry, sha256, readings))
        progress("packed", i + 1, len(entries))


def _load(root: Path, hdu: str | None, entries: list[Entry]) -> list[tuple[str, list[Reading]]]:
    return [read_all(root, entry, hdu) for entry in entries]


def _sample(entry: Entry, sha256: str, readings: list[Reading]) -> Sample:
    first = readings[0] if len(readings) == 1 else _with_pixels_of_hr(*readings)
    return Sample(
        first.image,
        entry.label,
        entry.name,
        mass=first.mass,
        target=readings[1].image if len(readings) > 1 else None,
        badpix=first.badpix,
        weight=first.weight,
        split=entry.split,
        file_sha256=sha256,
    )


def _with_pixels_of_hr(lr: Reading, hr: Reading) -> Reading:
    """Give LR the bad pixels and weights of HR.

    A pixel is bad where any of HR's is. Its weight is the mean of HR's, unless LR has its own.
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
