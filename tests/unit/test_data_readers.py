"""Every form of image file that people have, and the sentence that each other one gets."""

from __future__ import annotations

import bz2
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales

from lensdist.data.reading.raw import BadFile
from lensdist.data.reading.readers import Choice, Reading, parse, read

IMAGE = np.arange(20.0).reshape(4, 5)


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def npz(choice: str | None = None, /, **arrays: Any) -> Reading:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return parse(stream.getvalue(), ".npz", Choice(choice))


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
        ((6, 7, 1), (1, 6, 7)),
        ((6, 7, 3), (3, 6, 7)),
        ((20, 21, 9), (9, 20, 21)),
        ((1, 20, 21, 3), (3, 20, 21)),
    ],
)
def test_shapes(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=float).reshape(shape)
    reading = parse(npy(array), ".npy")
    assert reading.image.shape == expected
    assert reading.image.dtype == np.float32
    if np.prod(shape[:-2]) != expected[0]:
        array = np.moveaxis(array.reshape(shape[-3:]), -1, 0)
    np.testing.assert_array_equal(reading.image.ravel(), array.ravel())


@pytest.mark.parametrize("dtype", ["<f8", ">f8", ">f4", "<f2", "u1", ">u2", "<i8", "g", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_dtypes_and_orders(dtype: str, order: Any) -> None:
    array = np.asarray(IMAGE, dtype=dtype, order=order)
    np.testing.assert_array_equal(parse(npy(array), ".NPY").image[0], array.astype(np.float32))


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (IMAGE.astype(complex), "real numbers"),
        (np.zeros(4, dtype=[("a", "f4"), ("b", "f4")]), "real numbers"),
        (np.array(["a", "b"]), "real numbers"),
        (np.zeros((4, 5)), "constant"),
        (np.where(IMAGE == 3, np.nan, IMAGE), "NaN or infinity"),
        (np.where(IMAGE == 3, -np.inf, IMAGE), "NaN or infinity"),
        (IMAGE * 1e300, "float32"),
        (np.arange(5.0), "shape"),
        (np.zeros((0, 5)), "shape"),
        (np.zeros((2, 3, 4, 5)), "shape"),
        (np.zeros((20, 8, 8)), "--axes"),
    ],
)
def test_what_is_not_an_image_is_refused_in_a_sentence(array: Any, why: str) -> None:
    with pytest.raises(BadFile, match=why):
        parse(npy(array), ".npy")


def test_npz_takes_the_only_array_or_the_one_called_image() -> None:
    np.testing.assert_array_equal(npz(anything=IMAGE).image[0], IMAGE)
    found = npz(image=IMAGE, other=IMAGE * 2, mass=1e-23)
    np.testing.assert_array_equal(found.image[0], IMAGE)
    assert found.mass == 1e-23


def test_an_array_of_an_archive_is_chosen_by_name() -> None:
    np.testing.assert_array_equal(npz("r", g=IMAGE, r=IMAGE + 1).image[0], IMAGE + 1)
    with pytest.raises(BadFile, match="--hdu NAME: g, r"):
        npz(g=IMAGE, r=IMAGE + 1)
    with pytest.raises(BadFile, match="'i', but g, r"):
        npz("i", g=IMAGE, r=IMAGE + 1)


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


@pytest.mark.parametrize("keys", [("CD1_1", "CD2_2"), ("CDELT1", "CDELT2"), None])
def test_fits_pixel_scale_in_both_forms_or_none(keys: tuple[str, str] | None) -> None:
    hdu = fits.PrimaryHDU(IMAGE)
    if keys:
        hdu.header["CTYPE1"], hdu.header["CTYPE2"] = "RA---TAN", "DEC--TAN"
        hdu.header[keys[0]], hdu.header[keys[1]] = -0.101 / 3600, 0.101 / 3600
    reading = parse(fits_bytes(hdu), ".fit")
    assert reading.pixel_scale_arcsec == (pytest.approx(0.101) if keys else None)
    assert reading.zero_point_mag is None
    np.testing.assert_array_equal(reading.image[0], IMAGE)


def test_fits_takes_the_only_image_that_is_data() -> None:
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(IMAGE * 0, name="MASK"), fits.ImageHDU(IMAGE)]
    np.testing.assert_array_equal(parse(fits_bytes(*hdus), ".fits").image[0], IMAGE)


def test_fits_scaled_integers_are_unscaled() -> None:
    hdu = fits.PrimaryHDU(IMAGE.astype(np.uint16))  # written as int16 with BZERO 32768
    np.testing.assert_array_equal(parse(fits_bytes(hdu), ".fits").image[0], IMAGE)


def test_fits_without_an_image_lists_what_there_is() -> None:
    table = fits.BinTableHDU.from_columns([fits.Column("x", "E", array=[1.0])], name="CAT")
    with pytest.raises(BadFile, match=r"0 PRIMARY \(empty\), 1 CAT \(table\)"):
        parse(fits_bytes(fits.PrimaryHDU(), table), ".fits")


SEVERAL = [
    fits.PrimaryHDU(),
    fits.ImageHDU(IMAGE, name="VIS"),
    fits.ImageHDU(IMAGE + 1, name="NIR_Y"),
    fits.ImageHDU(IMAGE * 0 + 1, name="RMS"),
]


def test_several_images_are_listed_and_none_is_taken_for_the_image() -> None:
    data = fits_bytes(*SEVERAL)
    with pytest.raises(BadFile, match=r"2 images.*--hdu.*1 VIS \(4x5\), 2 NIR_Y \(4x5\)"):
        parse(data, ".fits")
    for choice, plus in (("vis", 0), ("NIR_Y", 1), ("2", 1)):
        np.testing.assert_array_equal(parse(data, ".fits", Choice(choice)).image[0], IMAGE + plus)
    for choice in ("0", "9", "J"):
        with pytest.raises(BadFile, match=f"--hdu {choice} .*: 0 PRIMARY"):
            parse(data, ".fits", Choice(choice))


def test_of_several_chips_each_has_its_own_mask() -> None:
    hdus = [fits.PrimaryHDU()]
    for ver in (1, 2):
        hdus.append(fits.ImageHDU(IMAGE + ver, name="SCI", ver=ver))
        hdus.append(fits.ImageHDU((ver * 7 == IMAGE).astype("i2"), name="DQ", ver=ver))
    with pytest.raises(BadFile, match="2 images"):
        parse(fits_bytes(*hdus), ".fits")
    with pytest.raises(BadFile, match=r"2 images .*--hdu SCI"):
        parse(fits_bytes(*hdus), ".fits", Choice("SCI"))
    found = np.asarray(parse(fits_bytes(*hdus), ".fits", Choice("3")).badpix)
    np.testing.assert_array_equal(found[0], IMAGE == 14)
    # A mask of another chip is not this one's.
    assert parse(fits_bytes(*hdus[:4]), ".fits", Choice("3")).badpix is None


@pytest.mark.parametrize("method", ["RICE_1", "GZIP_1", "GZIP_2"])
def test_tile_compressed_images_are_read(method: Any) -> None:
    pixels = IMAGE.astype(np.int16)
    tiles = fits.CompImageHDU(pixels, compression_type=method)
    data = fits_bytes(fits.PrimaryHDU(), tiles)
    np.testing.assert_array_equal(parse(data, ".fits").image[0], pixels)


def test_bands_of_a_cube_are_chosen_by_their_names() -> None:
    cube = np.stack([IMAGE, 10 * IMAGE, 100 * IMAGE])
    for key in ("FILTER", "BAND"):
        hdu = fits.ImageHDU(cube, name="SCI")
        hdu.header.update({f"{key}{i + 1}": name for i, name in enumerate("gri")})
        mask = (np.arange(3) == 2)[:, None, None] * (IMAGE == 7)
        data = fits_bytes(fits.PrimaryHDU(), hdu, fits.ImageHDU(mask.astype("u1"), name="MASK"))
        assert parse(data, ".fits").image.shape == (3, 4, 5)
        found = parse(data, ".fits", Choice(bands=("i", "G")))
        np.testing.assert_array_equal(found.image[1], cube[0])
        assert found.image[0].max() == cube[2].max()
        assert found.badpix is not None
        assert found.badpix.sum((1, 2)).tolist() == [1, 0]
        with pytest.raises(BadFile, match=r"g, r, i, without z"):
            parse(data, ".fits", Choice(bands=("z",)))


def test_blank_and_scaled_integers_in_a_packed_file(tmp_path: Path) -> None:
    """BZERO, BSCALE and BLANK of integers, compressed as a whole and by fpack's method."""
    stored = np.arange(400, dtype=np.int16).reshape(20, 20)
    header = fits.Header({"BLANK": 7})
    for name, hdu in (
        ("a.fits.gz", fits.PrimaryHDU(stored, header)),
        ("a.fits.fz", fits.CompImageHDU(stored, header, compression_type="RICE_1")),
    ):
        hdu.header.update(BZERO=100.0, BSCALE=0.5)
        if name.endswith("fz"):
            hdu = fits.HDUList([fits.PrimaryHDU(), hdu])  # type: ignore[assignment]
        hdu.writeto(tmp_path / name)
        with fits.open(tmp_path / name) as hdus:
            theirs = hdus[-1].data
        found = read(tmp_path / name)
        good = np.isfinite(theirs)
        assert (~good).sum() == 1
        np.testing.assert_allclose(found.image[0][good], theirs[good])
        assert found.badpix is not None
        np.testing.assert_array_equal(found.badpix[0], ~good)


def test_hcompress_is_refused_with_what_to_do() -> None:
    tiles = fits.CompImageHDU(np.resize(IMAGE, (32, 32)), compression_type="HCOMPRESS_1")
    with pytest.raises(BadFile, match=r"HCOMPRESS_1.*`funpack`"):
        parse(fits_bytes(fits.PrimaryHDU(), tiles), ".fits")


@pytest.mark.parametrize("name", ["a.FITS.gz", "b.fits.bz2", "c.npy.gz", "d.fit.GZ"])
def test_files_compressed_as_a_whole_are_read(tmp_path: Path, name: str) -> None:
    data = npy(IMAGE) if "npy" in name else fits_bytes(fits.PrimaryHDU(IMAGE))
    pack = gzip.compress if name.lower().endswith("gz") else bz2.compress
    (tmp_path / name).write_bytes(pack(data))
    np.testing.assert_array_equal(read(tmp_path / name).image[0], IMAGE)


def test_read_reads_the_field_repositorys_own_form(tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", IMAGE[None].astype(np.float64))
    np.testing.assert_array_equal(read(tmp_path / "1.npy").image[0], IMAGE)
