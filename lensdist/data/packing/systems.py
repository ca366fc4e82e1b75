"""Find images of one system, which must be in one split (torch-free)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import product

Place = tuple[float, float]
"""RA and Dec, degrees."""


def joined(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """Return a number for each item, the same for items that share a key, also through others."""
    parent = list(range(len(keys)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[Hashable, int] = {}
    for i, own in enumerate(keys):
        for key in own:
            a, b = root(first.setdefault(key, i)), root(i)
            parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(len(keys))]


def units(contents: Sequence[bytes], groups: Sequence[str]) -> list[bytes]:
    """Return a digest for each image that all images of its system share: the least of theirs.

    Args:
        contents: digests of the images; equal images are of one system.
        groups: names of systems; "" for an image that is a system of its own.
    """
    keys = [
        [("content", c), *([("group", g)] if g else [])]
        for c, g in zip(contents, groups, strict=True)
    ]
    number, least = joined(keys), dict[int, bytes]()
    for i, content in zip(number, contents, strict=True):
        least[i] = min(content, least.get(i, content))
    return [least[i] for i in number]


def by_sky(places: Sequence[Place | None], arcsec: float) -> list[str]:
    """Return names of systems: places within `arcsec` of each other, also through others.

    The name is the place of the first image; "" for images without a place.
    """
    radius = 2 * math.sin(math.radians(arcsec / 3600) / 2)  # a chord of the unit sphere
    points = [None if place is None else _on_sphere(place) for place in places]
    cells: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    pairs: list[list[Hashable]] = [[i] for i in range(len(points))]
    for i, point in enumerate(points):
        if point is None:
            continue
        cell = tuple(math.floor(x / radius) for x in point)
        for step in product((-1, 0, 1), repeat=3):
            for j in cells.get(tuple(a + b for a, b in zip(cell, step, strict=True)), ()):
                if math.dist(point, points[j] or ()) <= radius:
                    pairs[i].append(j)
        cells[cell].append(i)
    return [_name(places[i]) if places[j] else "" for j, i in enumerate(joined(pairs))]


def _name(place: Place | None) -> str:
    return "" if place is None else f"{place[0]:.5f}{place[1]:+.5f}"


def _on_sphere(place: Place) -> tuple[float, float, float]:
    ra, dec = map(math.radians, place)
    return math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec)
