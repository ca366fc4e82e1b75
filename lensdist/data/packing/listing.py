"""The samples that a folder offers (torch-free)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lensdist.data.manifest import Kind
from lensdist.data.packing.split_names import Member
from lensdist.data.reading.folders import Passed
from lensdist.data.reading.roles import Role


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample that a folder offers."""

    name: str
    """The file, relative to the source, with forward slashes; in a pair, the LR file."""
    label: int = -1
    split: str | None = None
    """`train`, `val` or `test` if the data sets it; None: to be decided."""
    target: str | None = None
    """The HR file of a pair."""
    group: str = ""
    """The system that it shows; images of one system are in one split. Empty: its own."""
    more: tuple[str, ...] = ()
    """The files of further bands."""
    place: tuple[float, float] | None = None
    """RA and Dec in a table beside the images, degrees."""
    redshift: float | None = None
    maps: tuple[tuple[int, Role, str], ...] = ()
    """The maps beside the image: number of the band, role and file."""

    @property
    def bands(self) -> tuple[str, ...]:
        """The files of the image, one for each band."""
        return (self.name, *self.more)

    @property
    def files(self) -> tuple[str, ...]:
        """All files: bands, the HR file of a pair, and maps."""
        hr = () if self.target is None else (self.target,)
        return (*self.bands, *hr, *dict.fromkeys(file for _, _, file in self.maps))


@dataclass
class Listing:
    """All that a folder offers, in an order that does not depend on the file system."""

    root: Path
    kind: Kind = "images"
    labels: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Image files that are left out, and why."""
    skipped: Passed = field(default_factory=Passed)
    notes: list[str] = field(default_factory=list)
    """Facts that the user should know."""
    bands_by_name: bool = False
    """Whether each band is a file; else bands are inside of each file."""

    def refuse_strays(self, strays: Iterable[Member]) -> None:
        """Leave out files that lie outside of any folder with a meaning."""
        why = "it lies outside any class or split folder"
        self.refused += [(member.file, why) for member in strays]


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sorting key that puts `sample10` after `sample9`."""
    pieces = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((0, int(p), p) if p[0] in "0123456789" else (1, 0, p) for p in pieces)
