"""Read every file once, and decide on all of them together (torch-free)."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from lensdist.data.manifest import DType
from lensdist.data.packing.layouts import Entry, Listing
from lensdist.data.packing.report import Report
from lensdist.data.packing.writer import check_scaled
from lensdist.data.reading.raw import BadFile, read_bytes
from lensdist.data.reading.readers import Reading, form, parse
from lensdist.data.splits import content_digest
from lensdist.utils.errors import UserError

Shapes = tuple[tuple[int, ...], ...]
"""(C, H, W) of an image and, in a pair, of its target."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The facts that the first pass keeps of a good sample."""

    sha256: str
    """Hash of the file; in a pair, of both files' hashes."""
    content: bytes
    shapes: Shapes
    low: float
    high: float
    pixel_scale_arcsec: float | None
    zero_point_mag: float | None


def read_all(root: Path, entry: Entry, hdu: str | None) -> tuple[str, list[Reading]]:
    """Read an entry's file or, of a pair, LR and HR; return their SHA-256 and readings.

    Raises:
        BadFile: see `readers.parse`, which also explains `hdu`.
    """
    hashes, readings = [], []
    for name in entry.files:
        try:
            data = read_bytes(root / name)
            hashes.append(hashlib.sha256(data).hexdigest())
            readings.append(parse(data, (form(Path(name).name) or ("", ""))[1], hdu))
        except BadFile as error:
            whose = "its HR partner cannot be used: " if name == entry.target else ""
            raise BadFile(f"{whose}{error}") from error
    if len(hashes) > 1:
        hashes = [hashlib.sha256("".join(hashes).encode()).hexdigest()]
    return hashes[0], readings


def survey_files(root: Path, hdu: str | None, entries: list[Entry]) -> list[Survey | str]:
    """Read some entries; return a `Survey` of each, or the reason why it cannot be used."""
    return [_survey(root, entry, hdu) for entry in entries]


def _survey(root: Path, entry: Entry, hdu: str | None) -> Survey | str:
    try:
        sha256, readings = read_all(root, entry, hdu)
    except BadFile as error:
        return str(error)
    images = [reading.image for reading in readings]
    return Survey(
        sha256,
        content_digest(*images),
        tuple(image.shape for image in images),
        min(float(image.min()) for image in images),
        max(float(image.max()) for image in images),
        readings[0].pixel_scale_arcsec,
        readings[0].zero_point_mag,
    )


def refuse(report: Report, entry: Entry, reason: str) -> None:
    """Quarantine a sample's file, and its partner, which is not used either."""
    report.refuse(entry.name, reason)
    if entry.target is not None:
        report.refuse(entry.target, f"its LR partner is not in the set: {entry.name}")


def choose(
    listing: Listing, surveys: dict[Entry, Survey], report: Report, max_bad: float, dtype: DType
) -> dict[Entry, Survey]:
    """Return the samples of the set; the others are listed in the report.

    Raises:
        UserError: too many files are bad, or the rest does not make a set.
    """
    surveys = _without_duplicates(_same_shape(surveys, report), report)
    report.check(max_bad)
    _check_classes(listing, surveys, report)
    for entry, survey in surveys.items():
        check_scaled(dtype, survey.low, survey.high, entry.name)
    return surveys


def _same_shape(surveys: dict[Entry, Survey], report: Report) -> dict[Entry, Survey]:
    """Quarantine all samples that are not of the commonest shape."""
    shapes = Counter(survey.shapes for survey in surveys.values())
    common = max(shapes, key=lambda shape: (shapes[shape], shape), default=())
    for entry, survey in surveys.items():
        if survey.shapes != common:
            reason = f"its shape {_text(survey.shapes)} is not the set's {_text(common)}"
            refuse(report, entry, reason)
    if len(common) > 1:
        _check_factor(common)
    return {entry: s for entry, s in surveys.items() if s.shapes == common}


def _check_factor(shapes: Shapes) -> None:
    (bands, height, width), (of_hr, high, wide) = shapes
    if high % height or wide % width:
        raise UserError(f"HR is not a whole multiple of LR: {_text(shapes)}")
    if bands != of_hr:
        raise UserError(f"LR and HR have not the same bands: {_text(shapes)}")
    if high // height != wide // width or high <= height:
        raise UserError(f"HR is not LR enlarged by 2 or more, alike both ways: {_text(shapes)}")


def _text(shapes: Shapes) -> str:
    return " -> ".join("x".join(map(str, shape)) for shape in shapes)


def _without_duplicates(surveys: dict[Entry, Survey], report: Report) -> dict[Entry, Survey]:
    """Keep one of each content: the test split's first, so that no test image is in train."""
    copies: defaultdict[bytes, list[Entry]] = defaultdict(list)
    for entry, survey in surveys.items():
        copies[survey.content].append(entry)
    priority = ("test", "val", "train", None)
    for entries in copies.values():
        entries.sort(key=lambda entry: priority.index(entry.split))  # stable: first file wins
        if len({entry.label for entry in entries}) > 1:
            for entry in entries:
                other = next(e for e in entries if e.label != entry.label)
                refuse(report, entry, f"the same image has another label: {other.name}")
        else:
            for entry in entries[1:]:
                refuse(report, entry, f"it is an exact copy of another file: {entries[0].name}")
    return {e: s for e, s in surveys.items() if e.name not in report.quarantined}


def _check_classes(listing: Listing, good: dict[Entry, Survey], report: Report) -> None:
    """Check that each split that came with the data has usable images of each class."""
    counts = Counter((entry.split, entry.label) for entry in good)
    for split in sorted({entry.split for entry in listing.entries}, key=str):
        for number, name in enumerate(listing.labels):
            left = counts[split, number]
            if not left:
                where = f" of the {split} split" if split else ""
                raise UserError(
                    f"class {name!r}{where} has no usable image left: {report.top_reasons()}"
                )
            if split is None and left < 10:
                report.notes.append(f"class {name!r} has only {left} images to split")


def agreed(what: str, values: list[float | None], report: Report) -> float | None:
    """Return the value that all files agree on to a part in 1000; else None, and note it."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = min(known), max(known)
    if len(known) < len(values) or high - low > 1e-3 * abs(high):
        report.notes.append(f"the files' {what}s run from {low:g} to {high:g}, or some have none")
        return None
    return float(sorted(known)[len(known) // 2])
