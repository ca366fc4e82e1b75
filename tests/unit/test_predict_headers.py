"""Cards of FITS headers beside the coordinates: kept, changed, left out or beyond reading."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from lensdist.data.reading.raw import BadFile
from lensdist.inference.frames import read_item
from lensdist.inference.images import write_image
from lensdist.inference.inputs import Input
from lensdist.inference.wcs import rescaled
from tests.unit.predict_samples import pixels, sky_hdu

pytestmark = pytest.mark.unit


def header(**cards: Any) -> fits.Header:
    found = fits.PrimaryHDU(np.zeros((40, 56), np.float32)).header
    found.update(CTYPE1="RA---TAN", CRPIX1=17.25, CDELT1=-3e-5, CDELT2=2e-5, **cards)
    return found


@pytest.mark.parametrize("factor", [2, 3])
def test_physical_coordinates_and_sections(factor: int) -> None:
    before = header(
        LTV1=-100.5, LTM2_2=0.5, LTM2_1=0.2, DATASEC="[1:56,1:40]", CCDSEC="[1:2,1:2]", PIXSCALE=0.1
    )
    before.update(SECPIX2="unknown", DETSEC="x", TRIMSEC="x", BIASSEC="x")
    after = rescaled(before, factor)
    parent = (321.7, 50.0)
    for axis, terms, offset in ((1, (1.0, 0.0), -100.5), (2, (0.2, 0.5), 0.0)):
        old = np.dot(terms, parent) + offset
        found = [after.get(f"LTM{axis}_{j}", 0.0) for j in (1, 2)]
        new = np.dot(found, parent) + after[f"LTV{axis}"]
        assert new == pytest.approx(factor * (old - 0.5) + 0.5)
    assert after["PIXSCALE"] == pytest.approx(0.1 / factor)
    assert after["SECPIX2"] == "unknown"
    assert not [key for key in after if key.endswith("SEC")]
    assert rescaled(before, 1)["DATASEC"] == "[1:56,1:40]"
    assert "LTM1_1" not in rescaled(before, 1)


def test_what_held_of_the_stored_pixels_goes() -> None:
    hdu = fits.PrimaryHDU(np.arange(20, dtype=np.uint16).reshape(4, 5))
    hdu.header.update(DATAMAX=19, BLANK=-1, OBJECT="lens", CRPIX1=3.0, CRVAL1=1.0)
    hdu.add_checksum()
    for factor in (1, 2):
        after = rescaled(hdu.header, factor)
        assert after["OBJECT"] == "lens"
        gone = {"BZERO", "BSCALE", "BLANK", "CHECKSUM", "DATASUM", "DATAMAX", "BITPIX", "NAXIS1"}
        assert not gone & set(after)
        assert after["CRPIX1"] == (3.0 if factor == 1 else 5.5)


HOSTILE: dict[str, Callable[[fits.Header], Any]] = {
    "unquoted": lambda h: h.append(fits.Card.fromstring("BROKEN  = some text")),
    "NaN": lambda h: h.append(fits.Card.fromstring("CD1_1   = NaN")),
    "text for a number": lambda h: h.update(CRPIX1="left", CDELT1=True, LTV1="x", A_1_0="y"),
    "huge": lambda h: h.update(CRPIX1=1.7e308, LTV1=1e308, B_1_1=1e308),
    "a huge whole number": lambda h: h.append(fits.Card.fromstring("CRPIX1A = " + "9" * 60)),
    "huge powers": lambda h: h.append(fits.Card.fromstring("A_9_99999= 1.0")),
    "imaginary": lambda h: h.append(fits.Card.fromstring("CRPIX2A = (1.0, 2.0)")),
    "other characters": lambda h: h.append(fits.Card.fromstring("COMMENT \xe9\x00\x07")),
    "no keyword": lambda h: h.append(fits.Card.fromstring("        = 3")),
    "lower case": lambda h: h.append(fits.Card.fromstring("crpix1a = 3.0")),
    "a long string": lambda h: h.update(LONG="x" * 300),
    "a long keyword": lambda h: h.update({"HIERARCH ESO DET CHIP1 PSZX": 15.0}),
    "no form": lambda h: h.append(fits.Card.fromstring("EXTNAME  'SCI'")),
    "no end": lambda h: h.append(fits.Card.fromstring("OBJECT  = 'no end")),
}


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("name", HOSTILE)
def test_odd_headers_are_written_all_the_same(name: str, factor: int) -> None:
    before = header()
    with warnings.catch_warnings(action="ignore"):
        HOSTILE[name](before)
        after = rescaled(before, factor)
        blank = np.zeros((2, 2), np.float32)
        hdus = [fits.PrimaryHDU(blank, after), fits.ImageHDU(blank, after, name="SIGMA")]
        fits.HDUList(hdus).verify("exception")
    assert after["CTYPE1"] == "RA---TAN"
    if name in ("a long string", "a long keyword"):
        assert len(after) == len(rescaled(header(), factor)) + 1


def test_of_repeated_cards_the_first_counts() -> None:
    before = header()
    before.append(fits.Card("CRPIX1", 999.0), end=True)
    before.add_comment("one")
    before.add_comment("two")
    after = rescaled(before, 2)
    assert after.count("CRPIX1") == 1
    assert after["CRPIX1"] == 2 * (17.25 - 0.5) + 0.5
    assert list(after["COMMENT"])[-2:] == ["one", "two"]


def test_damaged_headers_end_in_a_sentence_or_in_a_whole_file(tmp_path: Path) -> None:
    hdu = sky_hdu(pixels(1), LTV1=3.0, A_1_1=1e-3, LONG="x" * 100)
    stream = io.BytesIO()
    fits.PrimaryHDU(hdu.data, hdu.header).writeto(stream)
    source, dest = tmp_path / "a.fits", tmp_path / "b.fits"
    rng, written, refused = random.Random(0), 0, 0
    for _ in range(60):
        data = bytearray(stream.getvalue())
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(2880)] = rng.choice(b" ='/(0123456789ABCDENXISPT_.-+\x00\xff\n")
        source.write_bytes(data)
        try:
            item = read_item(Input(source, Path("a.fits")), framed=True)
        except BadFile:
            refused += 1
            continue
        bands, height, width = item.reading.image.shape
        large = np.zeros((bands, 2 * height, 2 * width), np.float32)
        write_image(dest, large, large, item.frame, 2, ["made by a test"])
        with warnings.catch_warnings(action="ignore"), fits.open(dest) as hdus:
            assert hdus["SIGMA"].data.shape[-2:] == (2 * height, 2 * width)
            assert "made by a test" in str(hdus[0].header["HISTORY"])
        written += 1
    assert written > 20
    assert refused > 5
