"""Say what `lensdist pack` would pack, for `--dry-run` (torch-free)."""

from __future__ import annotations

import numpy as np

from lensdist.data.packing.pack import Surveyed
from lensdist.data.packing.report import counts_table
from lensdist.data.packing.systems import units
from lensdist.data.splits import SPLITS, UNDECIDED, assign_splits, count_classes
from lensdist.utils.files import printable

_SHOWN = 10


def preview(found: Surveyed, seed: int) -> list[str]:
    """Return the lines of a description: what is packed, how, and what is left out and why.

    Args:
        found: the folder, surveyed.
        seed: seed of the splits that are drawn.
    """
    entries, surveys = [*found.surveys], [*found.surveys.values()]
    label = np.array([entry.label for entry in entries], np.int16)
    supplied = np.array(
        [UNDECIDED if e.split is None else SPLITS.index(e.split) for e in entries], np.uint8
    )
    systems = units([s.content for s in surveys], [e.group for e in entries])
    split = assign_splits(systems, label, seed, supplied)
    came = sorted({entry.split for entry in entries if entry.split})
    instrument = found.instrument
    facts = {
        "layout": found.listing.kind,
        "splits": f"{', '.join(came)} came with the data" if came else "drawn from all images",
        "shape": " -> ".join("x".join(map(str, shape)) for shape in surveys[0].shapes),
        "values": f"{min(s.low for s in surveys):g} to {max(s.high for s in surveys):g}",
        "unit": found.unit or "unknown",
        "pixel scale": _with(instrument.pixel_scale_arcsec, "arcsec"),
        "zero point": _with(instrument.zero_point_mag, "mag"),
        "PSF": _psfs(found),
        "maps": ", ".join(sorted({role for e in entries for _, role, _ in e.maps})) or "no files",
        "systems": f"{len(set(systems)):,} of {len(entries):,} images",
    }
    lines = [f"would pack {len(entries):,} images of {printable(found.listing.root)}"]
    lines += [f"  {key + ':':<12} {value}" for key, value in facts.items()]
    lines += counts_table(count_classes(label, split, found.listing.labels))
    step = -(-len(entries) // _SHOWN)
    names = found.listing.labels or [""]
    for entry, code in list(zip(entries, split, strict=True))[::step]:
        group = f", system {printable(entry.group)}" if entry.group else ""
        which = names[entry.label] if entry.label >= 0 else "unlabelled"
        files = printable(" + ".join(entry.files))
        lines.append(f"  {files}: {printable(which)}, {SPLITS[code]}{group}")
    return lines + found.report.lines()


def _with(value: float | None, unit: str) -> str:
    return "unknown" if value is None else f"{value:g} {unit}"


def _psfs(found: Surveyed) -> str:
    shapes = {survey.psf for survey in found.surveys.values()}
    if len(shapes) > 1:
        return "not kept: images have PSFs of several shapes, or none"
    (shape,) = shapes
    if shape is None:
        return _with(found.instrument.psf_fwhm_arcsec, "arcsec FWHM")
    return f"a map for each image, {'x'.join(map(str, shape))}"
