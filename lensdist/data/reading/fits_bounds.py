"""Bound what a FITS file may cost, from its structure, before astropy parses it (torch-free).

astropy makes an object of each card and HDU, and unpacks tiles to whatever size they hold: 10^6
cards took it a minute and 900 MB. Here headers are read as 80-byte cards, and only cards that give
sizes are parsed.
"""

from __future__ import annotations

import gzip
import io
import math
import re
from typing import Any

from lensdist.data.reading.raw import BadFile, check_unpacked_size

_BLOCK, _CARD = 2880, 80
_MAX_HDUS = 200
_MAX_CARDS = 20_000  # of all headers together; a survey stamp's header has 60 to 500
_MAX_TILES = 1 << 16  # of a compressed image; usually a tile is a row
_SIZE = re.compile(rb"(BITPIX|NAXIS\d*|PCOUNT|GCOUNT|ZBITPIX|ZNAXIS\d*|ZTILE\d+) *= *([^/]*)")
_METHOD = re.compile(rb"ZCMPTYPE= *'(\w+) *'")
_METHODS = ("RICE_1", "RICE_ONE", "GZIP_1", "GZIP_2")  # decoders of other methods trust the file

Sizes = dict[str, int]


def check_structure(data: bytes) -> None:
    """Check the sizes that all HDUs of a file claim.

    Raises:
        BadFile: too many HDUs or cards; a size that is not a number, or is beyond the file or,
            for compressed images, beyond `MAX_BYTES`; or a compression that is not read here.
    """
    at = hdus = cards = 0
    while at == 0 or data.startswith(b"XTENSION", at):
        hdus += 1
        if hdus > _MAX_HDUS:
            raise BadFile(f"it has more than {_MAX_HDUS} HDUs")
        sizes, method, length = _header(data, at, _MAX_CARDS - cards)
        cards += length
        size = _bytes(sizes, "BITPIX", "NAXIS", sizes.get("GCOUNT", 1), sizes.get("PCOUNT", 0))
        at += -(-length * _CARD // _BLOCK) * _BLOCK
        if size > len(data) - at:
            raise BadFile("it is cut short: its header promises more than the file holds")
        at += -(-size // _BLOCK) * _BLOCK
        if method is not None:
            _check_tiles(sizes, method)


def _header(data: bytes, at: int, most: int) -> tuple[Sizes, str | None, int]:
    """Return the sizes, the compression and the number of cards of the header at byte `at`."""
    sizes: Sizes = {}
    method = None
    for n, start in enumerate(range(at, len(data) - _CARD + 1, _CARD)):
        if n >= most:
            raise BadFile(f"its headers have more than {_MAX_CARDS:,} cards")
        card = data[start : start + _CARD]
        if card.rstrip(b" ") == b"END":
            return sizes, method, n + 1
        if found := _SIZE.match(card):
            key, value = found[1].decode(), found[2].strip()
            if key in sizes or not re.fullmatch(rb"[+-]?\d{1,15}", value):
                raise BadFile(f"its header is damaged: {key} is not one whole number")
            sizes[key] = int(value)
        elif found := _METHOD.match(card):
            method = found[1].decode()
    raise BadFile("it is cut short: a header has no end")


def _bytes(sizes: Sizes, depth: str, axes: str, groups: int = 1, heap: int = 0) -> int:
    """Return the bytes of the data that a header describes."""
    n = sizes.get(axes, 0)
    shape = [sizes.get(f"{axes}{i + 1}", -1) for i in range(min(n, 1000))]
    if n < 0 or min([*shape, groups, heap]) < 0:
        raise BadFile("its header is damaged: a size is negative or missing")
    return abs(sizes.get(depth, 8)) // 8 * groups * (heap + math.prod(shape)) if n else 0


def _check_tiles(sizes: Sizes, method: str) -> None:
    if method not in _METHODS:
        raise BadFile(f"it is compressed by {method}: unpack it with `funpack` first")
    tile = math.prod(max(sizes.get(f"ZTILE{i}", 1), 1) for i in range(1, 1000))
    # Half: float64 images and tiles, which become float32, may take twice the bytes.
    check_unpacked_size(-(-max(_bytes(sizes, "ZBITPIX", "ZNAXIS"), 8 * tile) // 2))
    if sizes.get("NAXIS2", 0) > _MAX_TILES:
        raise BadFile(f"it is compressed in more than {_MAX_TILES:,} tiles")


def check_gzip_tiles(table: Any) -> None:
    """Unpack the gzip tiles of a compressed image, and check each against the size of a tile.

    Args:
        table: the image's HDU, opened as a table.

    Raises:
        BadFile: a tile unpacks to more than its header says.
    """
    header = table.header
    axes = range(1, int(header["ZNAXIS"]) + 1)
    # Without ZTILE a tile is a row. A pixel takes 8 bytes at most.
    most = 8 * math.prod(int(header.get(f"ZTILE{i}", header["ZNAXIS1"] if i == 1 else 1))
                         for i in axes)  # fmt: skip
    columns = ["GZIP_COMPRESSED_DATA"]
    if str(header["ZCMPTYPE"]).startswith("GZIP"):
        columns.append("COMPRESSED_DATA")
    for column in columns:
        for tile in table.data[column] if column in table.columns.names else ():
            if len(tile):
                with gzip.GzipFile(fileobj=io.BytesIO(tile.tobytes())) as file:
                    if len(file.read(most + 1)) > most:
                        raise BadFile("a tile of it unpacks to more than its header says")
