"""Pack a folder of image files: survey all, decide, then write (torch-free).

All files are read twice. The first pass finds what is bad, duplicated or odd before anything is
written, so the decisions (which files are quarantined, which split a sample is in, whether to go on
at all) are made on the whole set; the second pass writes. Results come back in order, so the
number of processes changes no byte.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from pydantic import JsonValue

from lensdist.data.manifest import DType, Manifest
from lensdist.data.packing import layouts
from lensdist.data.packing.layouts import Layout
from lensdist.data.packing.listing import Entry, Listing
from lensdist.data.packing.parallel import OrderedPool
from lensdist.data.packing.report import Report, ReportBeside
from lensdist.data.packing.samples import load, sample_of
from lensdist.data.packing.split_names import Splits
from lensdist.data.packing.stacks import StackAxes
from lensdist.data.packing.survey import (
    SKY_ARCSEC,
    Survey,
    agreed,
    agreed_word,
    choose,
    grouped,
    refuse,
    survey_files,
)
from lensdist.data.packing.table import Table, read_table
from lensdist.data.packing.writer import Instrument, PackedWriter
from lensdist.data.reading.containers import holds_many
from lensdist.data.reading.raw import BadFile
from lensdist.data.reading.readers import Choice, check_choice
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
    choice: Choice = field(default_factory=Choice)
    """The image of files that hold several."""
    splits: Splits = None
    """The splits by the names of folders."""
    group_by: str | None = None
    """What images of one system share: `folder`, `column` or `column:NAME` of the table, a regular
    expression for their paths, `sky` or `sky:ARCSEC`. They are in one split."""
    table: Path | None = None
    """A table of labels, splits, systems and places; see `table.read_table`."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The table's columns by what they mean."""
    axes: StackAxes | None = None
    """What the axes of arrays mean; None: found by their shapes."""
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
    with (
        _surveyed(src, dest, options, jobs, progress) as found,
        PackedWriter(
            dest,
            labels=found.listing.labels,
            seed=options.seed,
            source={
                "folder": ascii(src.resolve().name)[1:-1],
                "layout": found.listing.kind,
                "hdu": options.choice.hdu,
                **_noted(options, found),
            },
            kind=found.listing.kind,
            instrument=found.instrument,
            dtype=options.dtype,
            report=found.report,
        ) as writer,
    ):
        try:
            _write_all(writer, found, progress)
            return writer.finish(), found.report
        except BadFile as error:
            raise RunError(
                f"a file of {printable(src)} changed while it was being packed: {error}"
            ) from error
        except OSError as error:
            raise RunError(f"cannot write {printable(dest)}: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class Surveyed:
    """A folder whose files were all read once."""

    listing: Listing
    surveys: dict[Entry, Survey]
    """The samples of the set."""
    report: Report
    instrument: Instrument
    choice: Choice
    """What to take of each file."""
    unit: str
    """The images' unit where all files agree on it, else empty."""
    pool: OrderedPool


def survey(
    src: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    options: PackOptions | None = None,
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Surveyed:
    """Read all files and decide as `pack` does, and write nothing but `DEST.report.json` on errors.

    Raises:
        UserError: see `pack`.
    """
    progress = progress or (lambda what, done, of: None)
    with _surveyed(Path(src), Path(dest), options or PackOptions(), jobs, progress) as found:
        return found


@contextmanager
def _surveyed(
    src: Path, dest: Path, options: PackOptions, jobs: int, progress: Progress
) -> Iterator[Surveyed]:
    _check_places(src, dest)
    sky = _arcsec(options.group_by)
    group_by, table = _table(options)
    listing, beside = Listing(src), ReportBeside(dest)
    try:
        layouts.find(
            src,
            options.layout,
            options.labels,
            splits=options.splits,
            group_by=group_by if sky is None else None,
            choice=options.choice,
            axes=options.axes,
            table=table,
            into=listing,
        )
    except UserError as error:
        report = Report(skipped=listing.skipped, notes=[*listing.notes, str(error)])
        raise UserError(f"{error}.{beside.write(report)}") from error
    if options.choice.cut is not None and listing.kind == "pairs":
        raise UserError("--crop, --pad and --resample are not for pairs; make both sides alike")
    if listing.bands_by_name:
        options = replace(options, choice=replace(options.choice, bands=()))
    report = _new_report(listing, options.choice.hdu)
    with OrderedPool(jobs if len(listing.entries) > _CHUNK else 1) as pool:
        surveys = _survey_all(pool, listing, options, report, progress)
        try:
            surveys = choose(listing, surveys, report, options.max_bad, options.dtype)
            surveys = grouped(surveys, sky, report, checks=options.group_by is None)
        except UserError as error:
            raise UserError(f"{error}{beside.write(report)}") from error
        beside.remove()
        if stretched := sum(one.stretched for one in surveys.values()):
            report.notes.append(
                f"{stretched} images are pictures of whole numbers, stretched for a screen: their "
                "values are not proportional to flux"
            )
        unit = agreed_word("unit", [survey.unit for survey in surveys.values()], report)
        instrument = _instrument(options.instrument, surveys, report)
        yield Surveyed(listing, surveys, report, instrument, options.choice, unit, pool)


def _arcsec(group_by: str | None) -> float | None:
    """Return the radius of `sky` or `sky:ARCSEC`, arcsec; None: it is something else."""
    name, _, radius = (group_by or "").partition(":")
    if name != "sky":
        return None
    try:
        if 0 < (found := float(radius or SKY_ARCSEC)) <= 3600:
            return found
    except ValueError:
        pass
    raise UserError(f"--group-by {group_by}: give sky:ARCSEC, from above 0 to 3600")


def _table(options: PackOptions) -> tuple[str | None, Table | None]:
    """Return what images are grouped by, and the table."""
    group_by, columns = options.group_by, dict(options.columns)
    word, _, column = (group_by or "").partition(":")
    if word == "column":
        group_by, columns = word, columns | ({"group": column} if column else {})
    if options.table is None:
        if word == "column" or columns:
            raise UserError("--group-by column and --columns need a table: --labels FILE.csv")
        return group_by, None
    table = read_table(options.table, columns)
    if word == "column" and "group" not in table.columns:
        raise UserError(f"--group-by column: say which of {printable(options.table)}: column:NAME")
    return group_by, table


def _noted(options: PackOptions, found: Surveyed) -> dict[str, JsonValue]:
    """Return what the manifest says of options that are not always used."""
    facts: dict[str, JsonValue] = {
        "bands": ",".join(options.choice.bands),
        "cut": None if options.choice.cut is None else str(options.choice.cut),
        "stretched": any(one.stretched for one in found.surveys.values()),
        "group_by": options.group_by,
        "unit": found.unit,
    }
    return {key: value for key, value in facts.items() if value}


def _check_places(src: Path, dest: Path) -> None:
    if not src.is_dir() and not (src.is_file() and holds_many(src.name)):
        raise UserError(f"{printable(src)} is not a folder, nor .npy, .npz, .h5 or .zip")
    if Path(os.path.realpath(dest)).is_relative_to(src.resolve()):
        raise UserError(
            f"{printable(dest)} lies inside {printable(src)}: the next pack would read it as input"
        )
    check_free(dest)


def _new_report(listing: Listing, hdu: str | None) -> Report:
    report = Report(skipped=listing.skipped, notes=listing.notes)
    names = {name for entry in listing.entries for name in entry.files}
    report.files = len(names | {name for name, _ in listing.refused})
    check_choice(hdu, names)
    for name, reason in listing.refused:
        report.refuse(name, reason)
    return report


def _survey_all(
    pool: OrderedPool, listing: Listing, options: PackOptions, report: Report, progress: Progress
) -> dict[Entry, Survey]:
    surveys: dict[Entry, Survey] = {}
    entries = listing.entries
    found = pool.map(partial(survey_files, listing.root, options.choice), entries, _CHUNK)
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


def _write_all(writer: PackedWriter, found: Surveyed, progress: Progress) -> None:
    entries, src = list(found.surveys), found.listing.root
    pixels = sum(math.prod(shape) for shape in found.surveys[entries[0]].shapes)
    chunk = min(_CHUNK, max(1, _CHUNK_BYTES // (4 * pixels)))
    loaded = found.pool.map(partial(load, src, found.choice), entries, chunk)
    psf = len({survey.psf for survey in found.surveys.values()}) == 1  # one shape for all, or none
    for i, (entry, (sha256, readings)) in enumerate(zip(entries, loaded, strict=True)):
        if sha256 != found.surveys[entry].sha256:
            raise RunError(f"{printable(src / entry.name)} changed while it was being packed")
        writer.add(sample_of(entry, sha256, readings, psf))
        progress("packed", i + 1, len(entries))
