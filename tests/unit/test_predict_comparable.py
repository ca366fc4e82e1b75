"""Survey images are cut and resampled to what a model was trained on, or refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from lensdist.data.reading.raw import BadFile
from lensdist.inference.comparable import Wanted, placed
from lensdist.inference.frames import Item, read_item
from lensdist.inference.inputs import Input
from lensdist.inference.predict import predict_files, wanted_by
from lensdist.utils.errors import UserError
from tests.unit.predict_samples import Classifier, SuperResolver, inputs, pixels, rows

WANTED = Wanted((8, 8), 0.1)


def survey(path: Path, size: int = 40, scale: float = 0.1, **cards: Any) -> Path:
    """A file with a WCS, whose pixels all differ."""
    sky = WCS(naxis=2)
    sky.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    sky.wcs.crval, sky.wcs.crpix = [150.0, 2.0], [size / 2, size / 2]
    sky.wcs.cdelt = [-scale / 3600, scale / 3600]
    image = np.random.default_rng(0).random((size, size)).astype(np.float32)
    fits.PrimaryHDU(image, sky.to_header()).writeto(path, overwrite=True)
    return path


def read(path: Path, wanted: Wanted = WANTED, at: tuple[float, float] | None = None) -> Item:
    return read_item(Input(path, Path(path.name), at=at), False, wanted=wanted)


def test_an_image_of_the_trained_size_and_scale_is_used_as_it_is(tmp_path: Path) -> None:
    path = survey(tmp_path / "a.fits", 8)
    item = read(path)
    assert item.changes == ""
    assert np.array_equal(item.reading.image[0], fits.getdata(path))
    np.save(tmp_path / "b.npy", pixels(0))
    assert read(tmp_path / "b.npy").changes == ""


def test_a_larger_image_is_cut_around_its_middle(tmp_path: Path) -> None:
    path = survey(tmp_path / "a.fits")
    item = read(path)
    assert np.array_equal(item.reading.image[0], fits.getdata(path)[16:24, 16:24])
    assert "cut from 40x40" in item.changes


def test_a_place_on_the_sky_is_cut_out(tmp_path: Path) -> None:
    path = survey(tmp_path / "a.fits")
    ((ra, dec),) = WCS(fits.getheader(path)).all_pix2world([[11.5, 20.5]], 0)
    item = read(path, at=(float(ra), float(dec)))
    assert np.array_equal(item.reading.image[0], fits.getdata(path)[17:25, 8:16])
    with pytest.raises(BadFile, match="outside") as error:
        read(path, at=(10.0, 2.0))
    assert "--pad" not in str(error.value)
    ((ra, dec),) = WCS(fits.getheader(path)).all_pix2world([[1, 20]], 0)
    with pytest.raises(BadFile, match="do not hold") as error:
        read(path, at=(float(ra), float(dec)))
    assert "--pad" not in str(error.value)


def test_an_image_of_another_scale_is_resampled_and_keeps_its_light(tmp_path: Path) -> None:
    path = survey(tmp_path / "a.fits", 64, 0.05)
    item = read(path)
    middle = fits.getdata(path)[24:40, 24:40]
    assert item.reading.image.shape == (1, 8, 8)
    assert item.reading.image.sum() == pytest.approx(middle.sum(), rel=1e-5)
    assert "resampled from 0.05 to 0.1 arcsec" in item.changes


def test_a_scale_is_the_same_within_rounding_and_the_header_s_counts(tmp_path: Path) -> None:
    path = survey(tmp_path / "a.fits", 16, 0.095)
    assert "resampled from 0.095" in read(path).changes
    assert "resampled from 0.095" in read(path, Wanted((8, 8), 0.1, 0.1)).changes
    assert "resampled" not in read(survey(path, 16, 0.101)).changes


def test_a_place_is_cut_out_of_an_image_of_the_trained_size_too(tmp_path: Path) -> None:
    path = survey(tmp_path / "a.fits", 8)
    with pytest.raises(BadFile, match="do not hold"):
        read(path, at=(150.0, 2.00005))


def test_what_cannot_be_made_comparable_is_refused_with_what_to_type(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels(0, 16, 16))
    with pytest.raises(BadFile, match="--pixel-scale"):
        read(tmp_path / "a.npy")
    assert "cut from 16x16" in read(tmp_path / "a.npy", Wanted((8, 8), 0.1, 0.1)).changes
    with pytest.raises(BadFile, match="--crop 8"):
        read(tmp_path / "a.npy", Wanted((8, 8), None))
    with pytest.raises(BadFile, match="larger cutout"):
        read(survey(tmp_path / "b.fits", 10, 0.05))
    assert read(tmp_path / "a.npy", Wanted(None, 0.1)).changes == ""


def test_a_model_wants_its_own_size_unless_it_takes_any() -> None:
    assert wanted_by(Classifier(image_size=8)).size == (8, 8)
    assert wanted_by(SuperResolver()).size is None


def test_a_catalogue_gives_the_places_of_each_file(tmp_path: Path) -> None:
    one, other = (Input(tmp_path / name, Path(name)) for name in ("a.fits", "b.fits"))
    table = tmp_path / "places.csv"
    table.write_text("File,RA,Dec\na.fits,150.0,2\nb.fits,-1,-2.5\na.fits,150.1,2\n")
    found = placed([one, other], str(table))
    assert [(x.path.name, x.at) for x in found] == [
        ("a.fits", (150.0, 2.0)), ("b.fits", (-1.0, -2.5)), ("a.fits", (150.1, 2.0)),
    ]  # fmt: skip
    table.write_text("ra,dec\n1,2\n")
    assert placed([one], str(table))[0].at == (1.0, 2.0)
    assert placed([one, other], "150.5,-2")[1].at == (150.5, -2.0)
    with pytest.raises(UserError, match="column file"):
        placed([one, other], str(table))
    for text in ("x,y\n1,2\n", "ra,dec\n", "ra,dec\n1,100\n"):
        table.write_text(text)
        with pytest.raises(UserError, match="--at"):
            placed([one], str(table))
    for word in ("1", "1,2,3", "a,b", "1,91", "no.csv"):
        with pytest.raises(UserError, match="--at"):
            placed([one], word)


def test_the_table_says_what_was_changed_and_all_files_are_counted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    survey(tmp_path / "in" / "a.fits")
    survey(tmp_path / "in" / "b.fits", 8)
    np.save(tmp_path / "in" / "c.npy", pixels(0, 16, 16))
    out = tmp_path / "out.csv"
    found = inputs(tmp_path / "in", dest=out)
    skipped = predict_files(Classifier(image_size=8), found, out, wanted=WANTED)
    assert [one.path.name for one in skipped] == ["c.npy"]
    assert [bool(row["changes"]) for row in rows(out)] == [True, False]
    assert len(rows(out)) + len(skipped) == len(found) == 3
