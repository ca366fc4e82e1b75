"""Read every file once, and decide on all of them together (torch-free)."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from lensdist.data.manifest import DType
from lensdist.data.packing.listing import Entry, Listing
from lensdist.data.packing.report import Report
from lensdist.data.packing.systems import by_sky
from lensdist.data.packing.writer import check_scaled
from lensdist.data.reading.raw import BadFile
from lensdist.data.reading.readers import Choice, Reading, checked, read_together
from lensdist.data.splits import content_digest
from lensdist.utils.errors import UserError
from lensdist.utils.files import printable

SKY_ARCSEC = 1.0
"""Images whose centres are nearer to each other are taken for images of one system."""

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
    unit: str
    position: tuple[float, float] | None
    psf: tuple[int, ...] | None
    """Its shape."""
    stretched: bool


def read_all(root: Path, entry: Entry, choice: Choice) -> tuple[str, list[Reading]]:
    """Read an entry's image and, of a pair, LR and HR; return the files' SHA-256 and readings.

    Raises:
        BadFile: see `readers.parse`.
    """
    if choice.cut is not None and choice.cut.centre == "catalogue":
        if entry.place is None:
            raise BadFile("the table gives no RA and Dec for it, which --centre catalogue needs")
        choice = replace(choice, cut=replace(choice.cut, centre=entry.place))
    maps = [(band, role, root / file) for band, role, file in entry.maps]
    lr = read_together([root / name for name in entry.bands], maps, choice)
    readings, hashes = [checked(lr.raw, choice.nan)], lr.hashes
    if entry.target is not None:
        try:
            hr = read_together([root / entry.target], [], choice)
            readings.append(checked(hr.raw, choice.nan))
        except BadFile as error:
            raise BadFile(f"its HR partner cannot be used: {error}") from error
        hashes += hr.hashes
    if len(hashes) > 1:
        hashes = [hashlib.sha256("".join(hashes).encode()).hexdigest()]
    return hashes[0], readings


def survey_files(root: Path, choice: Choice, entries: list[Entry]) -> list[Survey | str]:
    """Read some entries; return a `Survey` of each, or the reason why it cannot be used."""
    return [_survey(root, entry, choice) for entry in entries]


def _survey(root: Path, entry: Entry, choice: Choice) -> Survey | str:
    try:
        sha256, readings = read_all(root, entry, choice)
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
        readings[0].unit,
        readings[0].position or entry.place,
        None if readings[0].psf is None else readings[0].psf.shape,
        readings[0].stretched,
    )


def refuse(report: Report, entry: Entry, reason: str) -> None:
    """Quarantine a sample's file, and the others of it, which are not used either."""
    report.refuse(entry.name, reason)
    for file in entry.files[1:]:
        whose = "its LR partner" if file == entry.target else "its image"
        report.refuse(file, f"{whose} is not in the set: {entry.name}")


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


def grouped(
    surveys: dict[Entry, Survey], sky: float | None, report: Report, *, checks: bool
) -> dict[Entry, Survey]:
    """Put images of one place on the sky into one group, and check what is grouped.

    Args:
        surveys: the samples of the set.
        sky: images within so many arcsec are of one system; None: as the listing says.
        report: notes how many systems there are.
        checks: whether images of one place that are in no group are an error.

    Raises:
        UserError: images of one system came in several splits, or are to be drawn apart.
    """
    places = [survey.position for survey in surveys.values()]
    if sky is not None:
        if None in places:
            name = next(
                entry.name for entry, place in zip(surveys, places, strict=True) if not place
            )
            raise UserError(f"--group-by sky: {name} has no celestial coordinates (WCS)")
        names = by_sky(places, sky)
        surveys = {
            replace(entry, group=name): survey
            for (entry, survey), name in zip(surveys.items(), names, strict=True)
        }
    elif checks and len(alike := _alike(list(surveys), by_sky(places, SKY_ARCSEC))) > 1:
        first, second = printable(alike[0]), printable(alike[1])
        raise UserError(
            f"{first} and {second} show one place on the sky, so one system would be in several "
            "splits; give --group-by sky, or another --group-by (folder, a regular expression)"
        )
    splits: dict[str, Entry] = {}
    for entry in surveys:
        other = splits.setdefault(entry.group, entry) if entry.group else entry
        if other.split != entry.split:
            raise UserError(
                f"system {printable(entry.group)} is in two splits that came with the data: "
                f"{printable(other.name)} and {printable(entry.name)}; remove one of them, or give "
                "--splits none to draw new splits"
            )
    if splits:
        report.notes.append(f"{len(surveys)} images of {len(splits)} systems, each in one split")
    return surveys


def _alike(entries: list[Entry], places: list[str]) -> list[str]:
    """Return the files of the first two images of one place that may come into several splits."""
    seen: dict[str, Entry] = {}
    for entry, place in zip(entries, places, strict=True):
        other = seen.setdefault(place, entry) if place else entry
        if other is not entry and (other.split is None or other.split != entry.split):
            return [other.name, entry.name]
    return []


def _same_shape(surveys: dict[Entry, Survey], report: Report) -> dict[Entry, Survey]:
    """Quarantine all samples that are not of the commonest shape."""
    shapes = Counter(survey.shapes for survey in surveys.values())
    common = max(shapes, key=lambda shape: (shapes[shape], shape), default=())
    for entry, survey in surveys.items():
        if survey.shapes != common:
            reason = f"its shape {_text(survey.shapes)} is not the set's {_text(common)}"
            if len(survey.shapes) == len(common) == 1 and survey.shapes[0][0] == common[0][0]:
                reason += "; --crop, --pad and --resample make one size of several"
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
    counts, few = Counter((entry.split, entry.label) for entry in good), list[str]()
    for split in sorted({entry.split for entry in listing.entries}, key=str):
        for number, name in enumerate(listing.labels):
            left = counts[split, number]
            if not left:
                where = f" of the {split} split" if split else ""
                raise UserError(
                    f"class {name!r}{where} has no usable image left: {report.top_reasons()}"
                )
            if split is None and left < 10:
                few.append(f"{name!r} {left}")
    if few:
        more = ", …" if len(few) > 5 else ""
        report.notes.append(f"classes with few images to split: {', '.join(few[:5])}{more}")


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


def agreed_word(what: str, values: list[str], report: Report) -> str:
    """Return the word that all files agree on; else "", and note it."""
    known = sorted({value for value in values if value})
    if len(known) > 1:
        report.notes.append(f"the files' {what}s differ: {', '.join(map(printable, known[:5]))}")
    return known[0] if len(known) == 1 and all(values) else ""
