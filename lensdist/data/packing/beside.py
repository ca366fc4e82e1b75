"""Find files that make one sample together: a file for each band, and maps beside an image.

`a_g.fits` and `a_r.fits` are two bands of one system; `a_rms.fits`, or `noise_map.fits` beside
`data.fits`, describes the image with the same stem (torch-free).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from lensdist.data.reading.readers import form
from lensdist.data.reading.roles import Role, is_band, named
from lensdist.utils.errors import UserError
from lensdist.utils.files import printable

Maps = tuple[tuple[Role, str], ...]
"""The role of each map that belongs to an image, and its file."""


def maps_of(
    files: Sequence[str], known: Mapping[str, Maps] | None = None
) -> tuple[dict[str, Maps], list[str]]:
    """Return the images with the maps that belong to them, and maps whose image is missing.

    `known` are maps of images in stacks, which no name of a file tells.

    A map belongs to the image in its folder that has the same stem; one whose name is only its
    role (`psf.fits`) belongs to all images of its folder. A name counts as a map's only where some
    map of that role has an image, so `noise_1.npy` in a folder of such files is an image.
    """
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for file in files:
        folders[str(PurePosixPath(file).parent)].append(file)
    found: dict[str, list[tuple[Role, str]]] = {}
    alone: list[tuple[Role, str]] = []
    roles: set[Role] = set()
    for inside in folders.values():
        cuts = {file: named(_stem(file)) for file in inside}
        images = [file for file, cut in cuts.items() if cut.role in (None, "image")]
        found |= {file: [] for file in images}
        for file, (stem, role) in cuts.items():
            if role is None or role == "image":
                continue
            owners = [image for image in images if not stem or cuts[image].stem == stem]
            for image in owners:
                found[image].append((role, file))
            if owners:
                roles.add(role)
            else:
                alone.append((role, file))
    missing = [file for role, file in alone if role in roles]
    found |= {file: [] for role, file in alone if role not in roles}
    also = known or {}
    return {file: (*found[file], *also.get(file, ())) for file in files if file in found}, missing


class Bands(NamedTuple):
    """Files of one sample for each band.

    Attributes:
        samples: the files of a sample, in the order of its bands, by the first.
        by_name: whether names of files tell bands apart; else they may be inside of each file.
        other: files of bands that are not chosen.
        refused: files that cannot be used, and why.
    """

    samples: dict[str, tuple[str, ...]]
    by_name: bool = False
    other: Sequence[str] = ()
    refused: Sequence[tuple[str, str]] = ()


def bands_of(files: Sequence[str], bands: Sequence[str]) -> Bands:
    """Find the files of each sample.

    Args:
        files: the images, relative to the source.
        bands: names of bands in their order; empty: each file is a sample.

    Raises:
        UserError: no bands are given, and several files differ by the name of their band only.
    """
    if not bands:
        _check_one_band(files)
        return Bands({file: (file,) for file in files})
    wanted = [band.lower() for band in bands]
    samples: defaultdict[str, dict[str, str]] = defaultdict(dict)
    other, refused = [], []
    for file in files:
        rest, band = next((cut for cut in _cuts(file) if cut[1].lower() in wanted), ("", ""))
        if not band:
            other.append(file)
        elif twin := samples[rest].get(band.lower()):
            refused.append((file, f"it is of the same band and name as {twin}"))
        else:
            samples[rest][band.lower()] = file
    if not samples:
        return Bands({file: (file,) for file in files})
    whole = {}
    for of in samples.values():
        if missing := [band for band, key in zip(bands, wanted, strict=True) if key not in of]:
            why = f"its system has no image of band {missing[0]}"
            refused += [(file, why) for file in of.values()]
        else:
            whole[of[wanted[0]]] = tuple(of[key] for key in wanted)
    return Bands(whole, True, other, refused)


def _check_one_band(files: Sequence[str]) -> None:
    alike: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for file in files:
        for rest, band in _cuts(file):
            if is_band(band):
                alike[rest].setdefault(band, file)
    several = [of for of in alike.values() if len(of) > 1]
    if several:
        bands = sorted({band for of in several for band in of})
        first, second = sorted(several[0].values())[:2]
        raise UserError(
            f"{printable(first)} and {printable(second)} are one system in two bands; choose one "
            f"or more with --bands, from {printable(','.join(bands))} (a system is then one image)"
        )


def _cuts(file: str) -> list[tuple[str, str]]:
    """Return each way to cut one word off the ends of a path's parts, and that word."""
    parts = [*PurePosixPath(file).parts[:-1], _stem(file)]
    found = []
    for i in reversed(range(len(parts))):
        words = re.split(r"([_\-. ]+)", parts[i])
        for rest, band in (("".join(words[:-2]), words[-1]), ("".join(words[2:]), words[0])):
            if band and (rest or i < len(parts) - 1 or len(parts) > 1):
                found.append(("/".join([*parts[:i], rest, *parts[i + 1 :]]), band))
    return found


def _stem(file: str) -> str:
    name = PurePosixPath(file).name
    return (form(name) or (name, ""))[0]
