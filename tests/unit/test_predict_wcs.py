"""Coordinates on finer pixels, held against what astropy makes of the headers before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales
from hypothesis import given, settings
from hypothesis import strategies as st

from lensdist.inference.wcs import rescaled

pytestmark = [
    pytest.mark.unit,
    pytest.mark.filterwarnings("ignore::astropy.wcs.FITSFixedWarning"),
    pytest.mark.filterwarnings("ignore::astropy.io.fits.verify.VerifyWarning"),
]

SIZE = (40, 56)  # H, W
ARCSEC = np.pi / 180 / 3600
TURN = np.array([[0.8, -0.6], [0.6, 0.8]])


def header(**cards: Any) -> fits.Header:
    """A tangential projection whose pixels are yet to be given a size."""
    found = fits.PrimaryHDU(np.zeros(SIZE, np.float32)).header
    found.update({
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 359.9999, "CRVAL2": -41.25,
        "CRPIX1": 17.25, "CRPIX2": -3.5,
    })  # fmt: skip
    found.update({key.replace("__", "."): value for key, value in cards.items()})
    return found


def matrix(name: str, elements: npt.NDArray[np.float64], letter: str = "") -> dict[str, float]:
    form = "{}{:03d}{:03d}{}" if name.endswith("00") else "{}{}_{}{}"
    name = name.removesuffix("00")
    return {
        form.format(name, i + 1, j + 1, letter): float(value)
        for (i, j), value in np.ndenumerate(elements)
    }


SIP = {
    "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 3, "B_ORDER": 2,
    "A_2_0": 3e-4, "A_0_2": -2e-4, "A_1_1": 1e-4, "A_3_0": 2e-6, "A_1_2": -1e-6, "B_2_0": -1e-4,
    "B_0_2": 4e-4, "B_1_1": 2e-4, "AP_ORDER": 2, "BP_ORDER": 2, "AP_1_0": 1e-3, "AP_2_0": -3e-4,
    "AP_0_2": 2e-4, "BP_0_1": -2e-3, "BP_0_2": -4e-4, "BP_1_1": -2e-4, "A_DMAX": 1.5,
    "B_DMAX": 0.5,
}  # fmt: skip
SKEWED = TURN @ np.array([[-3e-5, 2e-6], [1e-6, 2.5e-5]])
FORMS: dict[str, dict[str, Any]] = {
    "CD": matrix("CD", SKEWED),
    "CD of the drafts": matrix("CD00", SKEWED),
    "CD, zeros left out": {"CD1_1": -3e-5, "CD2_2": 3e-5},
    "CD beside CDELT, which it overrules": {**matrix("CD", SKEWED), "CDELT1": -1.0, "CDELT2": 1.0},
    "CDELT": {"CDELT1": -3e-5, "CDELT2": 2e-5},
    "CDELT and CROTA": {"CDELT1": -3e-5, "CDELT2": 2e-5, "CROTA2": 25.0},
    "CDELT and PC": {"CDELT1": -3e-5, "CDELT2": 2e-5, **matrix("PC", TURN)},
    "CDELT and PC of the drafts": {"CDELT1": -3e-5, "CDELT2": 2e-5, **matrix("PC00", TURN)},
    "PC holds the scale": matrix("PC", SKEWED),
    "PC holds one axis' scale": {"CDELT1": -3e-5, "PC1_1": 1.0, "PC2_1": 1e-6, "PC2_2": 2e-5},
    "half of PC": {"PC1_1": -3e-5, "PC1_2": 1e-5},  # PC2_2 is 1: a degree a pixel
    "neither": {},
    "SIP": {**matrix("CD", SKEWED), **SIP},
    "SIP with PC": {"CDELT1": -3e-5, "CDELT2": 2e-5, **matrix("PC", TURN), **SIP},
    "TPV": {
        **matrix("CD", SKEWED), "CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.01,
        "PV1_4": 0.3, "PV2_1": 0.99,
    },
    "no CRPIX": {**matrix("CD", SKEWED), "CRPIX1": ..., "CRPIX2": ...},
    "whole numbers": {"CDELT1": -1, "CDELT2": 1, "CRPIX1": 20, "CRPIX2": 21, "CRVAL1": 10},
}  # fmt: skip


def filled(name: str) -> fits.Header:
    found = header(**{k: v for k, v in FORMS[name].items() if v is not ...})
    for key, value in FORMS[name].items():
        if value is ...:
            del found[key]
    return found


def points() -> npt.NDArray[np.float64]:
    """Pixel centres, edges, and the image's outer corners, (N, 2), x before y."""
    h, w = SIZE
    x, y = np.meshgrid(np.linspace(0.5, w + 0.5, 2 * w + 1), np.linspace(0.5, h + 0.5, 2 * h + 1))
    return np.stack([x.ravel(), y.ravel()], 1)


def finer(at: npt.NDArray[np.float64], factor: int) -> npt.NDArray[np.float64]:
    """Where points are on finer pixels, counted from the image's corner at (0.5, 0.5)."""
    return (at - 0.5) * factor + 0.5


def directions(wcs: WCS, at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Unit vectors on the sky, whose differences keep all digits."""
    ra, dec = np.radians(wcs.all_pix2world(at, 1)).T
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], 1)


def apart(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Largest distance on the sky, arcsec."""
    return float(np.linalg.norm(one - other, axis=1).max() / ARCSEC)


def written(found: fits.Header, factor: int) -> fits.Header:
    """As it is read back from a file: headers keep 16 digits."""
    shape = [factor * n for n in SIZE]
    hdu = fits.PrimaryHDU(np.zeros(shape, np.float32), found)
    return fits.Header.fromstring(hdu.header.tostring())


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("name", FORMS)
def test_the_sky_stays_where_it_was(name: str, factor: int) -> None:
    before = filled(name)
    text = before.tostring()
    after = written(rescaled(before, factor), factor)
    assert before.tostring() == text
    old, new = WCS(before), WCS(after)
    assert new.pixel_shape == (factor * SIZE[1], factor * SIZE[0])
    at = points()
    assert apart(directions(old, at), directions(new, finer(at, factor))) < 1e-6
    assert (
        apart(directions(old, at), directions(new, finer(at, factor) + 0.1)) > 1e-3
    )  # it can tell
    ratio = proj_plane_pixel_scales(old) / proj_plane_pixel_scales(new)
    np.testing.assert_allclose(ratio, factor, rtol=1e-12)


def polynomial(found: fits.Header, name: str, u: Any, v: Any) -> Any:
    """SIP's, written out: of offsets in pixels, in pixels (Shupe et al. 2005)."""
    orders = range(4)
    return sum(found.get(f"{name}_{p}_{q}", 0.0) * u**p * v**q for p in orders for q in orders)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_sip_polynomials_scale_with_the_pixels_in_both_directions(factor: int) -> None:
    before = filled("SIP")
    after = written(rescaled(before, factor), factor)
    u, v = points().T - [[17.25], [-3.5]]
    for name in ("A", "B", "AP", "BP"):
        old, new = (polynomial(h, name, f * u, f * v) for h, f in ((before, 1), (after, factor)))
        assert np.abs(old).max() > 0.05  # pixels
        np.testing.assert_allclose(new, factor * old, rtol=1e-12, atol=1e-12)
    for key in ("A_DMAX", "B_DMAX"):
        assert after[key] == factor * before[key]
    assert after["A_ORDER"] == before["A_ORDER"]


number = st.floats(-1, 1).map(lambda x: round(x, 6))


@settings(max_examples=60, deadline=None)
@given(
    turn=st.floats(0, 6.2),
    skew=number,
    crpix=st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
    scale=st.floats(1e-6, 1e-4),
    form=st.sampled_from(["CD", "PC", "CDELT"]),
    letter=st.sampled_from(["", "A", "Z"]),
    factor=st.sampled_from([2, 3, 4]),
)
def test_any_linear_wcs(
    turn: float, skew: float, crpix: Any, scale: float, form: str, letter: str, factor: int
) -> None:
    linear = np.array([[np.cos(turn), skew - np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    if abs(np.linalg.det(linear)) < 0.05:
        return
    cards: dict[str, Any] = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}
    cards |= {"CRVAL1": 120.5, "CRVAL2": 33.0, "CRPIX1": crpix[0], "CRPIX2": crpix[1]}
    cards = {key + letter: value for key, value in cards.items()}
    if form == "CDELT":
        cards |= {f"CDELT{i}{letter}": scale for i in (1, 2)} | matrix("PC", linear, letter)
    else:
        cards |= matrix(form, linear * scale, letter)
    before = header(**cards, **({"CDELT1": 1e-5, "CDELT2": 1e-5} if letter else {}))
    after = written(rescaled(before, factor), factor)
    at = points()[::97]
    for key in {"", letter}:
        old, new = WCS(before, key=key or " "), WCS(after, key=key or " ")
        assert apart(directions(old, at), directions(new, finer(at, factor))) < 1e-6


def test_a_third_axis_keeps_its_scale() -> None:
    """Pixels of a cube that is sheared between sky and wavelength, as a slit's are."""
    factor = 3
    pc = np.eye(3) + np.array([[0, 0.1, 0.2], [-0.1, 0, 0.3], [0.4, 0.5, 0]])
    for cards in (
        {**matrix("PC", pc), "CDELT1": -3e-5, "CDELT2": 2e-5, "CDELT3": 7e-10},
        matrix("PC", pc * np.array([[3e-5], [2e-5], [7e-10]])),
        matrix("CD", pc * np.array([[3e-5], [2e-5], [7e-10]])),
    ):
        before = header(**cards, CTYPE3="WAVE", CRVAL3=5e-7, CRPIX3=2.0, CUNIT3="m")
        old, new = WCS(before, naxis=3), WCS(rescaled(before, factor), naxis=3)
        at = np.random.default_rng(0).uniform(1, 40, (50, 3))
        moved = np.column_stack([finer(at[:, :2], factor), at[:, 2]])
        np.testing.assert_allclose(
            new.wcs_pix2world(moved, 1), old.wcs_pix2world(at, 1), rtol=1e-12, atol=1e-18
        )


def test_forms_of_a_header_are_kept() -> None:
    after = rescaled(filled("CDELT and PC"), 2)
    assert [after[f"PC{i}_{j}"] for i in (1, 2) for j in (1, 2)] == list(TURN.ravel())
    assert after["CDELT1"] == -1.5e-5
    after = rescaled(filled("PC holds the scale"), 2)
    assert "CDELT1" not in after
    assert after["PC1_1"] == SKEWED[0, 0] / 2
    assert "CDELT1" not in rescaled(filled("CD"), 2)
    assert after["CRPIX1"] == 2 * (17.25 - 0.5) + 0.5


def test_a_header_without_coordinates_gets_none() -> None:
    after = rescaled(fits.Header({"OBJECT": "lens", "EXPTIME": 90}), 2)
    assert dict(after) == {"OBJECT": "lens", "EXPTIME": 90}


@pytest.mark.parametrize("factor", [1, 2])
def test_distortion_in_tables_is_left_out_and_said(factor: int) -> None:
    before = filled("CD")
    fields = ("EXTVER: 1.0", "NAXES: 2.0", "AXIS.1: 1.0", "AXIS.2: 2.0")
    for name, record in (("CPDIS", "DP"), ("D2IMDIS", "D2IM")):
        for axis in "12":
            before[f"{name}{axis}"] = "LOOKUP"
            for value in fields:
                line = f"{record + axis:8}= '{value}'"
                before.append(fits.Card.fromstring(line), end=True)
    before["CPERR1"] = 0.02
    with pytest.raises(ValueError, match="HDUList"):
        WCS(before)
    after = written(rescaled(before, factor), factor)
    at = points()
    old = directions(WCS(filled("CD")), at)
    assert apart(old, directions(WCS(after), finer(at, factor))) < 1e-6
    assert "is left out" in str(after["HISTORY"])
