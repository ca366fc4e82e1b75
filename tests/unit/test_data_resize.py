"""Crop, pad and resample: pixels, flux, maps and places on the sky, against astropy."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from lensdist.data.reading.raw import BadFile, Raw
from lensdist.data.reading.readers import Choice, Reading, parse
from lensdist.data.reading.resize import Cut, corner_of, resampled, resized, window
from tests.unit.data_files import image


def sky(pixels: Any, **maps: Any) -> bytes:
    """A file with a WCS of 0.2 arcsec a pixel, rotated, whose reference is off the middle."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = [150.0, 2.0], [7.0, 11.0]
    wcs.wcs.cd = np.array([[-0.8, 0.6], [0.6, 0.8]]) * 0.2 / 3600
    hdus = [fits.PrimaryHDU(pixels, wcs.to_header())]
    hdus += [fits.ImageHDU(array, name=name) for name, array in maps.items()]
    stream = io.BytesIO()
    fits.HDUList(hdus).writeto(stream)
    return stream.getvalue()


def read(data: bytes, **cut: Any) -> Reading:
    return parse(data, ".fits", Choice(cut=Cut(**cut)))


def test_a_window_has_the_pixels_of_the_image_and_fills_the_rest() -> None:
    pixels = image(1, 2, 5, 6)
    np.testing.assert_array_equal(window(pixels, (1, 2), (3, 2)), pixels[:, 1:4, 2:4])
    found = window(pixels, (-1, 4), (3, 4), fill=9)
    np.testing.assert_array_equal(found[:, 1:, :2], pixels[:, :2, 4:])
    assert (found[:, 0] == 9).all()
    assert (found[..., 2:] == 9).all()
    assert (window(pixels, (9, 9), (2, 2), fill=7) == 7).all()
    assert corner_of((3, 4), (5.0, 5.5)) == (4, 4)
    assert corner_of((4, 4), (5.0, 5.4)) == (4, 4)


@pytest.mark.parametrize("ratio", [0.5, 0.7, 1.0, 1.5, 2.0, 3.3])
def test_resampling_keeps_the_flux_and_the_middle(ratio: float) -> None:
    pixels = np.zeros((2, 40, 33))
    pixels[:, 12:28, 9:24] = image(2, 2, 16, 15)
    found = resampled(pixels, ratio)
    np.testing.assert_allclose(found.sum((1, 2)), pixels.sum((1, 2)))

    def centroid(array: Any) -> Any:
        grids = [np.arange(n) - (n - 1) / 2 for n in array.shape[1:]]
        flux = array.sum((1, 2))
        return np.stack([array.sum(2) @ grids[0] / flux, array.sum(1) @ grids[1] / flux])

    np.testing.assert_allclose(centroid(found) * ratio, centroid(pixels), atol=0.1)
    if ratio == 2:
        whole = pixels[:, :, :-1].reshape(2, 20, 2, 16, 2).sum((2, 4))
        np.testing.assert_allclose(resampled(pixels[:, :, :-1], 2), whole)


def test_weights_masks_and_psfs_follow_the_image() -> None:
    weight, bad = np.full((8, 8), 4.0), np.zeros((8, 8), bool)
    bad[3, 5] = True
    psf = np.zeros((5, 5))
    psf[2, 2] = 1
    raw = Raw(image(3), badpix=bad, weight=weight, psf=psf, pixel_scale_arcsec=0.1)
    found = resized(raw, Cut(scale=0.2))
    assert found.pixel_scale_arcsec == 0.2
    assert found.badpix is not None
    assert np.argwhere(found.badpix).tolist() == [[1, 2]]
    np.testing.assert_allclose(found.weight, 1)  # the sum of four has four times the variance
    assert found.psf is not None
    assert found.psf.shape == (3, 3)
    np.testing.assert_allclose(found.psf[1, 1], 1)
    with pytest.raises(BadFile, match="--pixel-scale"):
        resized(Raw(image(3)), Cut(scale=0.2))
    assert resized(Raw(image(3)), Cut(scale=0.2, scale_before=0.1)).image.shape == (4, 4)


def test_crop_and_pad_give_every_image_the_size() -> None:
    big, small = (Raw(image(n, n, n)) for n in (9, 5))
    np.testing.assert_array_equal(resized(big, Cut(crop=(5, 5))).image, big.image[2:7, 2:7])
    with pytest.raises(BadFile, match="--pad"):
        resized(small, Cut(crop=(7, 7)))
    with pytest.raises(BadFile, match="--crop"):
        resized(big, Cut(pad=(7, 7)))
    found = resized(small, Cut(crop=(7, 7), pad=(7, 7)))
    assert found.badpix is not None
    np.testing.assert_array_equal(found.image[1:6, 1:6], small.image)
    assert found.badpix.sum() == 49 - 25
    assert not found.badpix[1:6, 1:6].any()
    assert resized(big, Cut(crop=(7, 7), pad=(7, 7))).image.shape == (7, 7)


@pytest.mark.parametrize("scale", [None, 0.1, 0.4])
def test_ra_and_dec_are_where_astropy_puts_them(scale: float | None) -> None:
    pixels = image(4, 31, 41)
    data = sky(pixels)
    wcs = WCS(fits.getheader(io.BytesIO(data)))
    ra, dec = (float(x) for x in wcs.pixel_to_world_values(26, 13))
    if scale is None:
        found = read(data, crop=(7, 7), centre=(ra, dec))
        np.testing.assert_array_equal(found.image[0], pixels[10:17, 23:30].astype(np.float32))
        assert found.position == pytest.approx((ra, dec), abs=1e-9)
        with pytest.raises(BadFile, match="outside"):
            read(data, crop=(7, 7), centre=(ra + 1, dec))
        with pytest.raises(BadFile, match="WCS"):
            parse(fits_without(pixels), ".fits", Choice(cut=Cut(crop=(7, 7), centre=(ra, dec))))
    else:
        found = read(data, crop=(5, 5), centre=(ra, dec), scale=scale)
        assert found.pixel_scale_arcsec == scale
        assert found.position is not None
        away = np.hypot((found.position[0] - ra) * np.cos(np.radians(dec)), found.position[1] - dec)
        assert away * 3600 <= scale * 0.71  # the nearest whole pixel


def fits_without(pixels: Any) -> bytes:
    stream = io.BytesIO()
    fits.PrimaryHDU(pixels).writeto(stream)
    return stream.getvalue()


def test_the_brightest_good_pixel_may_be_the_middle() -> None:
    pixels = image(5, 21, 21)
    pixels[12, 6], pixels[3, 3], pixels[1, 1] = 50, 90, np.nan
    bad = np.zeros((21, 21), np.uint8)
    bad[3, 3] = 1
    found = read(sky(pixels, MASK=bad), crop=(5, 5), centre="brightest")
    np.testing.assert_array_equal(found.image[0], pixels[10:15, 4:9].astype(np.float32))


def test_bands_of_several_scales_come_to_one_grid() -> None:
    hdus = [fits.PrimaryHDU()]
    for name, n, step in (("VIS", 40, 0.1), ("NIR", 20, 0.3)):
        hdu = fits.ImageHDU(image(n, n, n), name=name)
        hdu.header.update(
            CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1=10.0, CRVAL2=20.0,
            CRPIX1=(n + 1) / 2, CRPIX2=(n + 1) / 2, CD1_1=-step / 3600, CD2_2=step / 3600,
        )  # fmt: skip
        hdus.append(hdu)
    stream = io.BytesIO()
    fits.HDUList(hdus).writeto(stream)
    cut = Cut(scale=0.2, crop=(16, 16))
    found = parse(stream.getvalue(), ".fits", Choice(bands=("VIS", "NIR"), cut=cut))
    assert found.image.shape == (2, 16, 16)
    assert found.pixel_scale_arcsec == 0.2
    assert found.position == pytest.approx((10.0, 20.0))
    with pytest.raises(BadFile, match="several shapes"):
        parse(stream.getvalue(), ".fits", Choice(bands=("VIS", "NIR")))
