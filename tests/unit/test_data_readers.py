"""Every form of image file that people have, and the sentence that each other one gets."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales

from lensdist.data.quarantine import BadFile
from lensdist.data.readers import Reading, parse, read

IMAGE = np.arange(20.0).reshape(4, 5)


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def npz(**arrays: Any) -> Reading:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return parse(stream.getvalue(), ".npz")


def fits_bytes(*hdus: Any) -> bytes:
    stream = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 5), (1, 4, 5)),
        ((1, 4, 5), (1, 4, 5)),
        ((3, 4, 5), (3, 4, 5)),
        ((1, 1, 4, 5), (1, 4, 5)),
    ],
)
def test_shapes(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=float).reshape(shape)
    reading = parse(npy(array), ".npy")
    assert reading.image.shape == expected
    assert reading.image.dtype == np.float32
    np.testing.assert_array_equal(reading.image.ravel(), array.ravel())


@pytest.mark.parametrize("dtype", ["<f8", ">f8", ">f4", "<f2", "u1", ">u2", "<i8", "g", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_dtypes_and_orders(dtype: str, order: Any) -> None:
    array = np.asarray(IMAGE, dtype=dtype, order=order)
    np.testing.assert_array_equal(parse(npy(array), ".NPY").image[0], array.astype(np.float32))


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (IMAGE.astype(complex), "not of real numbers"),
        (np.zeros(4, dtype=[("a", "f4"), ("b", "f4")]), "not of real numbers"),
        (np.array(["a", "b"]), "not of real numbers"),
        (np.zeros((4, 5)), "constant"),
        (np.where(IMAGE == 3, np.nan, IMAGE), "NaN or infinity"),
        (np.where(IMAGE == 3, -np.inf, IMAGE), "NaN or infinity"),
        (IMAGE * 1e300, "float32"),
        (np.arange(5.0), "shape"),
        (np.zeros((0, 5)), "shape"),
        (np.zeros((2, 3, 4, 5)), "shape"),
        (np.zeros((64, 64, 3)), "bands that stand last"),
    ],
)
def test_what_is_not_an_image_is_refused_in_a_sentence(array: Any, why: str) -> None:
    with pytest.raises(BadFile, match=why):
        parse(npy(array), ".npy")


def test_npz_takes_the_only_array_or_the_one_called_image() -> None:
    np.testing.assert_array_equal(npz(anything=IMAGE).image[0], IMAGE)
    np.testing.assert_array_equal(npz(image=IMAGE, other=IMAGE * 2, mass=1e-23).image[0], IMAGE)
    assert npz(image=IMAGE, mass=1e-23).mass == 1e-23
    with pytest.raises(BadFile, match="none is called"):
        npz(a=IMAGE, b=IMAGE)


@pytest.mark.parametrize("key", ["mask", "badpix"])
def test_masked_pixels_may_be_nan_and_become_zero(key: str) -> None:
    bad = IMAGE == 7
    reading = npz(image=np.where(bad, np.nan, IMAGE), **{key: bad}, weight=np.ones_like(IMAGE))
    assert reading.badpix is not None
    np.testing.assert_array_equal(reading.badpix[0], bad)
    np.testing.assert_array_equal(reading.image[0], np.where(bad, 0, IMAGE))
    assert reading.weight is not None
    assert reading.weight.shape == (1, 4, 5)


def test_pixels_without_weight_are_bad_where_there_is_no_mask() -> None:
    weight = np.where(IMAGE == 7, 0.0, 2.0)
    reading = npz(image=np.where(IMAGE == 7, np.nan, IMAGE), weight=weight)
    np.testing.assert_array_equal(np.asarray(reading.badpix)[0], IMAGE == 7)


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ({"mask": np.ones((3, 3))}, "not of the image's shape"),
        ({"weight": -IMAGE}, "weights"),
        ({"mask": np.ones((4, 5))}, "constant"),
        ({"mass": -1.0}, "mass"),
    ],
)
def test_bad_extras_are_refused(extra: dict[str, Any], why: str) -> None:
    with pytest.raises(BadFile, match=why):
        npz(image=IMAGE, **extra)


def test_fits_takes_sci_with_its_mask_weight_scale_and_zero_point() -> None:
    primary = fits.PrimaryHDU()
    primary.header["MAGZERO"] = 25.96
    sci = fits.ImageHDU(np.stack([IMAGE, IMAGE + 1]).astype(">f4"), name="SCI")
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    angle = 0.3
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    wcs.wcs.cd = turn * (0.08 / 3600)
    sci.header.update(wcs.to_header())
    err = fits.ImageHDU(IMAGE, name="ERR")
    dq = fits.ImageHDU((IMAGE == 3).astype(np.int16) * 4, name="DQ")
    wht = fits.ImageHDU(np.full((4, 5), 2.0), name="WHT")
    reading = parse(fits_bytes(primary, err, sci, dq, wht), ".fits")
    assert reading.image.shape == (2, 4, 5)
    assert reading.badpix is not None
    np.testing.assert_array_equal(reading.badpix[1], IMAGE == 3)
    assert reading.weight is not None
    assert reading.zero_point_mag == 25.96
    expected = proj_plane_pixel_scales(WCS(sci.header).celestial).mean() * 3600
    assert reading.pixel_scale_arcsec == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("form", ["CD", "CDELT"])
def test_fits_pixel_scale_in_both_forms(form: str) -> None:
    hdu = fits.PrimaryHDU(IMAGE)
    hdu.header["CTYPE1"], hdu.header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    one, two = ("CD1_1", "CD2_2") if form == "CD" else ("CDELT1", "CDELT2")
    hdu.header[one], hdu.header[two] = -0.101 / 3600, 0.101 / 3600
    assert parse(fits_bytes(hdu), ".fits").pixel_scale_arcsec == pytest.approx(0.101)


def test_fits_without_coordinates_has_no_scale() -> None:
    reading = parse(fits_bytes(fits.PrimaryHDU(IMAGE)), ".fit")
    assert reading.pixel_scale_arcsec is None
    assert reading.zero_point_mag is None
    np.testing.assert_array_equal(reading.image[0], IMAGE)


def test_fits_takes_the_first_image_that_is_data() -> None:
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(IMAGE * 0, name="MASK"), fits.ImageHDU(IMAGE)]
    np.testing.assert_array_equal(parse(fits_bytes(*hdus), ".fits").image[0], IMAGE)


def test_fits_scaled_integers_are_unscaled() -> None:
    hdu = fits.PrimaryHDU(IMAGE.astype(np.uint16))  # written as int16 with BZERO 32768
    np.testing.assert_array_equal(parse(fits_bytes(hdu), ".fits").image[0], IMAGE)


def test_fits_without_an_image_or_compressed_is_refused() -> None:
    with pytest.raises(BadFile, match="no image"):
        parse(fits_bytes(fits.PrimaryHDU()), ".fits")
    tiles = fits.CompImageHDU(IMAGE.astype(np.float32))
    with pytest.raises(BadFile, match="funpack"):
        parse(fits_bytes(fits.PrimaryHDU(), tiles), ".fits")


def test_read_reads_the_field_repositorys_own_form(tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", IMAGE[None].astype(np.float64))
    np.testing.assert_array_equal(read(tmp_path / "1.npy").image[0], IMAGE)
