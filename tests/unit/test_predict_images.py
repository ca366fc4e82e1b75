"""Images as .npy and FITS: names, shapes, headers, coordinates."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import lensdist
from lensdist.cli import main
from lensdist.data.reading.readers import read
from lensdist.inference.predict import predict_files
from tests.unit.exported import write_model
from tests.unit.predict_samples import (
    BAD,
    Array,
    SuperResolver,
    inputs,
    means,
    mixed,
    pixels,
    rows,
    sky_hdu,
)

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return mixed(tmp_path / "in")


@pytest.mark.parametrize("factor", [2, 3])
def test_images_keep_names_forms_and_shapes(folder: Path, tmp_path: Path, factor: int) -> None:
    dest = tmp_path / "out"
    given = inputs(folder, dest=dest)
    skipped = predict_files(SuperResolver(factor, sigma=True), given, dest)
    assert {one.name.stem for one in skipped} == set(BAD)
    shapes = {}
    for path in dest.rglob("*.npy"):
        shapes[str(path.relative_to(dest))] = np.load(path).shape
        assert np.load(path).dtype == np.float32
    f = factor
    expected = {
        "lens9": (8 * f, 8 * f), "lens10": (8 * f, 8 * f), "deep/banded": (1, 8 * f, 8 * f),
        "deep/er/masked": (8 * f, 8 * f), "unmasked": (8 * f, 8 * f), "large": (12 * f, 10 * f),
        "bands": (3, 8 * f, 8 * f), "large2": (12 * f, 10 * f), "large3": (10 * f, 12 * f),
    }  # fmt: skip
    assert shapes == {f"{k}{end}": v for k, v in expected.items() for end in (".npy", ".sigma.npy")}
    others = {path.name for path in dest.rglob("*") if path.is_file()} - {
        Path(name).name for name in shapes
    }
    assert others == {"sky.fits", "plain.fit", "skipped.csv"}
    made = np.load(dest / "lens9.npy")
    np.testing.assert_allclose(means(made, f), pixels(9), atol=1e-6)
    assert (np.load(dest / "lens9.sigma.npy") == 0.5).all()
    hidden = np.load(dest / "deep" / "er" / "masked.npy")
    np.testing.assert_array_equal(np.isnan(hidden), (pixels(2) < 0.2).repeat(f, 0).repeat(f, 1))


def test_fits_keeps_its_headers_and_its_sky(tmp_path: Path) -> None:
    primary = fits.PrimaryHDU()
    primary.header.update(TELESCOP="Euclid", NEXTEND=3, PIXSCALE=0.1)
    science = sky_hdu(pixels(4), OBJECT="lens", GAIN=2.5, EXTVER=2)
    science.header["HISTORY"] = "flat fielded"
    wht = fits.ImageHDU(np.ones((8, 8)), name="WHT")
    source = tmp_path / "a.fits"
    fits.HDUList([primary, wht, science]).writeto(source, checksum=True)
    dest = tmp_path / "out"
    assert not predict_files(SuperResolver(2, sigma=True), inputs(source, dest=dest), dest)
    with fits.open(dest / "a.fits") as hdus:
        hdus.verify("exception")
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "SCI", "SIGMA"]
        assert dict(hdus[0].header).keys() >= {"TELESCOP", "DATE"}
        assert "NEXTEND" not in hdus[0].header
        assert hdus[0].header["PIXSCALE"] == 0.05
        head = hdus[1].header
        assert (head["OBJECT"], head["GAIN"], head["BUNIT"]) == ("lens", 2.5, "electron/s")
        assert head["EXTVER"] == 2
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", head["DATE"])
        history = " ".join(head["HISTORY"])
        assert history == (
            f"flat fielded lensdist {lensdist.__version__}: task sr, preset best? "
            "weights sha256 0123456789abcdef "
            "pixel values are means: a block of 2 x 2 averages to the input pixel; "
            "divide by 4 for flux per pixel"
        )
        assert hdus[1].data.dtype == ">f4"
        np.testing.assert_allclose(means(hdus[1].data, 2), pixels(4), atol=1e-6)
        assert (hdus[2].data == 0.5).all()
        old = WCS(science.header).all_pix2world([[0.5, 0.5], [8.5, 8.5], [3, 4]], 1)
        for hdu in hdus[1:]:
            new = WCS(hdu.header).all_pix2world([[0.5, 0.5], [16.5, 16.5], [5.5, 7.5]], 1)
            np.testing.assert_allclose(new, old, atol=1e-10)
    # What was written is read again: the image, its scale and no other HDU.
    again = read(dest / "a.fits")
    assert again.image.shape == (1, 16, 16)
    assert again.pixel_scale_arcsec == pytest.approx(0.036)


def test_a_model_whose_blocks_are_not_exact_says_so(tmp_path: Path) -> None:
    fits.PrimaryHDU(pixels(1)).writeto(tmp_path / "a.fits")
    model = SuperResolver(3, decoder="upconv")
    dest = tmp_path / "out"
    predict_files(model, inputs(tmp_path, dest=dest), dest)
    history = " ".join(fits.getheader(dest / "a.fits")["HISTORY"])
    assert "a block of 3 x 3 averages only roughly to the input pixel" in history


def test_bands_that_stand_last_in_a_file_come_first(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels(1, 9, 8, 3))
    dest = tmp_path / "out"
    assert not predict_files(SuperResolver(), inputs(tmp_path, dest=dest), dest, form="fits")
    assert fits.getdata(dest / "a.fits").shape == (3, 18, 16)


def test_pixels_are_finite_but_where_the_input_s_are_bad(tmp_path: Path) -> None:
    class Broken(SuperResolver):
        def predict(self, x: Array, **more: Any) -> dict[str, Array]:
            found = super().predict(x, **more)
            found["image"][..., 15, 15] = np.nan
            return found

    for name, at in (("good", (7, 7)), ("poor", (0, 0))):  # the pixel of the NaN, and another
        mask = np.zeros((8, 8), bool)
        mask[at] = True
        np.savez(tmp_path / f"{name}.npz", image=pixels(1), mask=mask)
    dest = tmp_path / "out"
    skipped = predict_files(Broken(), inputs(tmp_path, dest=dest), dest)
    assert {one.path.stem: "not finite" in why for one, why in skipped.items()} == {"poor": True}


@pytest.mark.parametrize("shape", [(8, 9), (1, 8, 9), (3, 8, 9), (1, 1, 8, 9)])
@pytest.mark.parametrize("form", ["npy", "fits", None])
def test_forms_and_shapes(tmp_path: Path, shape: tuple[int, ...], form: Any) -> None:
    np.save(tmp_path / "a.npy", pixels(1, *shape))
    fits.PrimaryHDU(pixels(1, *shape)).writeto(tmp_path / "b.fits")
    dest = tmp_path / "out"
    assert not predict_files(SuperResolver(), inputs(tmp_path, dest=dest), dest, form=form)
    names = {"npy": {"a.npy", "b.npy"}, "fits": {"a.fits", "b.fits"}, None: {"a.npy", "b.fits"}}
    assert {path.name for path in dest.iterdir()} == names[form]
    bands = shape[-3:-2] or (1,)
    kept = {".npy": () if len(shape) == 2 else bands, ".fits": shape[:-2]}
    for path in dest.iterdir():
        found = np.load(path) if path.suffix == ".npy" else fits.getdata(path)
        assert found.shape == (*kept[path.suffix], 16, 18)


def test_an_autoencoder_s_images_keep_size_and_coordinates(tmp_path: Path) -> None:
    write_model(tmp_path, "mae")
    (tmp_path / "in").mkdir()
    science = sky_hdu(pixels(1, 64, 64), DATASEC="[1:64,1:64]")
    fits.PrimaryHDU(science.data, science.header).writeto(tmp_path / "in" / "a.fits")
    np.save(tmp_path / "in" / "b.npy", pixels(2, 64, 64))
    np.save(tmp_path / "in" / "small.npy", pixels(2, 32, 32))
    dest = tmp_path / "out"
    assert main(["predict", str(tmp_path), str(tmp_path / "in"), "--out", str(dest)]) == 1
    model = lensdist.load(tmp_path)
    expected = model.predict(np.stack([pixels(1, 64, 64), pixels(2, 64, 64)]))["recon"]
    found = fits.getdata(dest / "a.fits"), np.load(dest / "b.npy")
    np.testing.assert_allclose(np.stack(found), expected[:, 0], atol=1e-6)
    head = fits.getheader(dest / "a.fits")
    assert (head["CRPIX1"], head["CD1_1"], head["DATASEC"]) == (4.0, -2e-5, "[1:64,1:64]")
    history = " ".join(head["HISTORY"])
    assert model.description["sha256"]["model.safetensors"][:16] in history
    assert "means" not in history
    assert [Path(row["file"]).name for row in rows(dest / "skipped.csv")] == ["small.npy"]
