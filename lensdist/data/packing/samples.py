"""Make samples of a packed set from the files of entries (torch-free)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from lensdist.data.packing.listing import Entry
from lensdist.data.packing.survey import read_all
from lensdist.data.packing.writer import Sample
from lensdist.data.reading.readers import Choice, Reading


def load(root: Path, choice: Choice, entries: list[Entry]) -> list[tuple[str, list[Reading]]]:
    """Read entries again; see `survey.read_all`."""
    return [read_all(root, entry, choice) for entry in entries]


def sample_of(entry: Entry, sha256: str, readings: list[Reading], psf: bool) -> Sample:
    """Return a sample of what `read_all` returned; `psf`: whether the set keeps PSFs."""
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
        group=entry.group,
        psf=first.psf if psf else None,
        facts=_facts(entry),
    )


def _facts(entry: Entry) -> dict[str, JsonValue]:
    ra, dec = entry.place or (None, None)
    facts: dict[str, JsonValue] = {"ra": ra, "dec": dec, "redshift": entry.redshift}
    return {key: value for key, value in facts.items() if value is not None}


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
