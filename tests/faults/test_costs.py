"""What a stranger's file may cost: it is refused by size, before a parser makes objects of it."""

from __future__ import annotations

import gzip
import io
import os
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from lensdist.data.reading import raw
from lensdist.data.reading.raw import BadFile, read_bytes
from lensdist.data.reading.readers import parse

pytestmark = pytest.mark.faults

IMAGE = np.arange(20.0).reshape(4, 5)
END = b"END".ljust(80)


def _fits(*hdus: Any) -> bytes:
    stream = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(stream)
    return stream.getvalue()


def cards() -> bytes:
    plain = _fits(fits.PrimaryHDU(IMAGE))
    at = plain.index(END)
    header = plain[:at] + b"".join(
        b"K%-7d=                    1".ljust(80) % i for i in range(300_000)
    )
    return (header + END).ljust(-(-(len(header) + 80) // 2880) * 2880) + plain[2880:]


def hdus() -> bytes:
    plain = _fits(fits.PrimaryHDU(), fits.ImageHDU(IMAGE))
    return plain[:2880] + 3000 * plain[2880:]


def tiles(old: bytes, new: bytes) -> bytes:
    data = _fits(
        fits.PrimaryHDU(), fits.CompImageHDU(IMAGE.astype("i2"), compression_type="GZIP_1")
    )
    assert old in data
    return data.replace(old, new)


def gzip_tile() -> bytes:
    """A tile of 40 bytes by its header, 64 MB by its content."""
    bomb = gzip.compress(bytes(64 << 20))
    hdu = fits.CompImageHDU(IMAGE.astype("i2"), compression_type="GZIP_1", tile_shape=(4, 5))
    plain = io.BytesIO(_fits(fits.PrimaryHDU(), hdu))
    with fits.open(plain, disable_image_compression=True) as found:
        header = found[1].header.copy()
        column = np.empty(1, object)
        column[0] = np.frombuffer(bomb, np.uint8)
        table = fits.BinTableHDU.from_columns(
            [fits.Column("COMPRESSED_DATA", "PB()", array=column)]
        )
        table.header.extend([card for card in header.cards if card.keyword.startswith("Z")])
        return _fits(fits.PrimaryHDU(), table)


def members() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for i in range(2000):
            archive.writestr(f"{i}.npy", b"")
    return stream.getvalue()


def twice() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("image.npy", "jmage.npy"):
            array = io.BytesIO()
            np.save(array, IMAGE)
            archive.writestr(name, array.getvalue())
    return stream.getvalue().replace(b"jmage", b"image")


COSTLY: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "cards": (cards, ".fits", "more than 20,000 cards"),
    "HDUs": (hdus, ".fits", "more than 200 HDUs"),
    "tiles": (lambda: tiles(b"ZNAXIS1 =                    5", b"ZNAXIS1 =            999999999"),
              ".fits", "unpacks to more than"),
    "a tile": (lambda: tiles(b"ZTILE1  =                    5", b"ZTILE1  =           9999999999"),
               ".fits", "unpacks to more than"),
    "a tile's content": (gzip_tile, ".fits", "a tile of it unpacks to more"),
    "a size given twice": (
        lambda: _fits(fits.PrimaryHDU(IMAGE)).replace(END, b"NAXIS1  = 5".ljust(80), 1),
        ".fits", "NAXIS1 is not one whole number"),
    "members": (members, ".npz", "more than 1000 arrays"),
    "two members of a name": (twice, ".npz", "two arrays called 'image.npy'"),
}  # fmt: skip


@pytest.mark.parametrize("name", COSTLY)
def test_costly_files_are_refused_at_once(name: str) -> None:
    make, suffix, why = COSTLY[name]
    data = make()
    parse(_fits(fits.PrimaryHDU(IMAGE)), ".fits")  # astropy's import is not the file's
    tracemalloc.start()
    try:
        started = time.process_time()
        with pytest.raises(BadFile, match=why):
            parse(data, suffix)
        assert time.process_time() - started < 5
        assert tracemalloc.get_traced_memory()[1] < (32 << 20) + 2 * len(data)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".npy", ".fits"])
def test_a_gzip_bomb_stops_at_the_limit(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "MAX_BYTES", 4 << 20)
    bomb = gzip.compress(bytes(200 << 20), 1)
    tracemalloc.start()
    try:
        with pytest.raises(BadFile, match="unpacks to more than 4 MiB"):
            parse(bomb, suffix)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_grows_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "1.npy"
    np.save(path, IMAGE)
    assert read_bytes(path)
    fstat = os.fstat

    def growing(handle: int) -> os.stat_result:
        about = fstat(handle)
        with path.open("ab") as file:
            file.write(b"more")
        return about

    monkeypatch.setattr(os, "fstat", growing)
    with pytest.raises(BadFile, match="changed while it was read"):
        read_bytes(path)


def test_a_device_is_not_even_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "1.npy")
    opened: list[Any] = []
    monkeypatch.setattr(os, "open", lambda *args: opened.append(args))
    with pytest.raises(BadFile, match="not a regular file"):
        read_bytes(tmp_path / "1.npy")
    assert not opened
