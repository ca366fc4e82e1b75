"""FITS headers for images on finer pixels: coordinates, distortion and sections (torch-free).

A pixel's centre has whole coordinates, so its edges are at n - 1/2. Where each pixel is cut into
f x f pixels, position p becomes p' = f (p - 1/2) + 1/2, and an offset of u pixels becomes f u.
"""

from __future__ import annotations

import re
from copy import copy
from typing import Any

Header = Any
"""An `astropy.io.fits.Header`."""

_AXES = (1, 2)  # x and y, in FITS's counting
# These cards describe the stored pixels of the input only.
_OF_THE_DATA = ("BLANK", "BSCALE", "BZERO", "CHECKSUM", "DATASUM", "DATAMAX", "DATAMIN")
_HUGE = 1e300  # not a coordinate; times a factor it would overflow
_SECTIONS = ("DATASEC", "TRIMSEC", "CCDSEC", "DETSEC", "BIASSEC")
_SCALES = ("PIXSCALE", "PIXSCAL1", "PIXSCAL2", "SECPIX", "SECPIX1", "SECPIX2")  # arcsec a pixel
_SIP = re.compile(r"(?:A|B|AP|BP)_(\d+)_(\d+)")
# CDi_ja and PCi_ja, and their names in drafts of the standard: CD00i00j, PC00i00j.
_MATRIX = re.compile(r"(CD|PC)(?:0*(\d+)_(\d+)([A-Z]?)|(\d{3})(\d{3}))")
_WCS = re.compile(r"(?:CTYPE|CRPIX|CRVAL|CDELT|CROTA|CD|PC)0*[12](?:_?\d+)?([A-Z]?)")
_PHYSICAL = re.compile(r"LTV[12]|LTM[12]_[12]")  # IRAF: p = LTM (pixel of the parent image) + LTV
# Distortion tables are separate HDUs, in pixels of the input.
_TABLES = re.compile(
    r"(?:CPDIS|CQDIS|CPERR|CQERR|D2IMDIS|D2IMERR)\d+[A-Z]?|(?:DP|DQ|D2IM)\d+[A-Z]?(?:\..*)?"
    r"|D2IMARR|D2IMEXT|AXISCORR"
)


def rescaled(header: Header, factor: int) -> Header:
    """Return the header for an image with each pixel cut into `factor` x `factor`.

    Positions on the sky are kept to rounding, for linear WCS in any form, primary or alternate, and
    for SIP. Unreadable and repeated cards, structural keywords and cards that no longer hold are
    left out. So are distortion tables, which a HISTORY card states.

    Args:
        header: the input's header, which is not changed.
        factor: 1 or more.
    """
    new = _readable(header).copy(strip=True)
    for key in _OF_THE_DATA:
        new.remove(key, ignore_missing=True)
    tables = [key for key in new if _TABLES.fullmatch(key)]
    for key in tables:
        new.remove(key)
    if tables:
        new.add_history("distortion in tables (CPDIS, D2IMDIS) is left out of the WCS")
    if factor == 1:
        return new
    for letter in {m[1] for key in new if (m := _WCS.fullmatch(key))}:
        _rescale_linear(new, factor, letter)
    for key in list(new):
        if match := _SIP.fullmatch(key):
            _change(new, key, float(factor) ** (1 - int(match[1]) - int(match[2])))
        elif key in ("A_DMAX", "B_DMAX"):  # pixels
            _change(new, key, factor)
        elif key in _SCALES:
            _change(new, key, 1 / factor)
        elif key in _SECTIONS:
            new.remove(key)
    if any(_PHYSICAL.fullmatch(key) for key in new):
        for i in _AXES:
            _change(new, f"LTV{i}", factor, (1 - factor) / 2, default=0.0)
            _change(new, f"LTM{i}_{i}", factor, default=1.0)
            _change(new, f"LTM{i}_{3 - i}", factor)
    return new


def _readable(header: Header) -> Header:
    """Return the cards that can be read and written; of repeated keywords the first."""
    from astropy.io import fits

    new = fits.Header()
    for original in header.cards:
        card = copy(original)
        try:
            card.comment = card.comment  # raises for a malformed card, which verify accepts
            card.verify("silentfix+exception")
            if str(card)[:8] != str(card)[:8].upper():  # astropy reads this, but does not fix it
                card = fits.Card(card.keyword, card.value, card.comment)
            if card.keyword in ("COMMENT", "HISTORY", "") or card.keyword not in new:
                new.append(card, end=True)
        except (fits.VerifyError, ValueError):
            continue
    return new


def _rescale_linear(header: Header, factor: int, letter: str) -> None:
    """Rescale CRPIX, and the linear terms: CD, or CDELT with PC or CROTA.

    The sky coordinate i is CDELT_i sum_j PC_ij (p_j - CRPIX_j), or sum_j CD_ij (p_j - CRPIX_j).
    So the factors of p_1 and p_2 are divided in CDELT_1 and CDELT_2, or else in the matrix.
    """
    elements = {
        key: (m[1], int(m[2] or m[5]), int(m[3] or m[6]))
        for key in header
        if (m := _MATRIX.fullmatch(key)) and (m[4] or "") == letter
    }
    kinds = {kind for kind, _, _ in elements.values()}
    # Without CDELT, PC holds the scale; without either, a pixel is one unit.
    by_row = {i for i in _AXES if f"CDELT{i}{letter}" in header or "PC" not in kinds}
    for key, (kind, i, j) in elements.items():
        by_matrix = kind == "CD" or i not in by_row
        if by_matrix and j in _AXES:
            _change(header, key, 1 / factor)
        elif not by_matrix and j not in _AXES:
            # The row's CDELT is divided below, which other axes, such as wavelength, must undo.
            _change(header, key, factor)
    for i in _AXES:
        _change(header, f"CRPIX{i}{letter}", factor, (1 - factor) / 2, default=0.0)
        if i not in by_row:
            if ("PC", i, i) not in elements.values():
                header[f"PC{i}_{i}{letter}"] = 1 / factor
        else:
            unit = None if "CD" in kinds else 1.0
            _change(header, f"CDELT{i}{letter}", 1 / factor, default=unit)


def _change(
    header: Header, key: str, by: float, plus: float = 0.0, default: float | None = None
) -> None:
    """Replace a card's value x by `by` x + `plus`; an absent card has the value `default`.

    A card without a number is not changed.
    """
    value = header.get(key, default)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and abs(value) < _HUGE:
        header[key] = by * value + plus
