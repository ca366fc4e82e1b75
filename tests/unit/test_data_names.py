"""What people call their files: splits, systems, bands and maps, and what becomes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from lensdist.commands import pack as command
from lensdist.data.dataset import PackedSet
from lensdist.data.packing import layouts, split_names
from lensdist.data.packing.beside import bands_of, maps_of
from lensdist.data.packing.pack import PackOptions, pack, survey
from lensdist.data.packing.systems import by_sky, units
from lensdist.data.reading.folders import Passed
from lensdist.data.reading.readers import Choice
from lensdist.data.reading.roles import named
from lensdist.inference.inputs import find, together
from lensdist.utils.errors import UserError
from tests.unit.data_files import image
from tests.unit.test_data_layouts import touch


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # Each file: its class, its split (None: to be drawn).
        ("train_lenses/1 train_nonlenses/1 test_lenses/1 test_nonlenses/1",
         "lenses:None nonlenses:None lenses:test nonlenses:test"),
        ("train/a/1 val/a/1", "a:None a:test"),  # a supplied val is the test split
        ("train/a/1 valid/a/1 test/a/1", "a:train a:val a:test"),
        ("TrainData/a/1 TestData/a/1", "a:None a:test"),
        ("Train_data/a/1 Test_data/a/1", "a:None a:test"),
        ("X/1 X_test/1", "-:None -:test"),
        ("X/a/1 X/b/1 X_test/a/1 X_test/b/1", "a:None b:None a:test b:test"),
        ("lenses/1 others/1 lenses_test/1 others_test/1",
         "lenses:None others:None lenses:test others:test"),
        ("a/train/1 b/train/1 a/test/1 b/test/1", "a:None b:None a:test b:test"),
        ("train/a/1 train/b/1 test/1", "a:None b:None -:test"),  # test images without labels
        ("train_1/a/1 train_2/a/1 test/a/1", "a:None a:None a:test"),
        ("a/train_1 a/test_1 b/train_1 b/test_1", "a:None a:test b:None b:test"),
        ("train-1 test-1", "-:None -:test"),
        ("test/a/1 test/b/1", "a:test b:test"),  # a set for testing only
        ("latest/1 contest/1", "latest:None contest:None"),  # no words of their own
    ],
)  # fmt: skip
def test_names_give_splits(tmp_path: Path, files: str, expected: str) -> None:
    listing = layouts.find(touch(tmp_path, *(f"{name}.npy" for name in files.split())))
    found = {
        entry.name: f"{listing.labels[entry.label] if entry.label >= 0 else '-'}:{entry.split}"
        for entry in listing.entries
    }
    assert [found[f"{name}.npy"] for name in files.split()] == expected.split()


@pytest.mark.parametrize(
    "files",
    [
        "train/a/1 other/a/1",  # looks like a split, and the rest is in none
        "train/test_a/1 train/b/1",  # two splits in one path
        "train/a/1 holdout/a/1",
        "train_001 test_001 image_001",
    ],
)
def test_names_that_look_like_splits_are_refused_with_what_to_type(
    tmp_path: Path, files: str
) -> None:
    touch(tmp_path, *(f"{name}.npy" for name in files.split()))
    with pytest.raises(UserError, match="--splits"):
        layouts.find(tmp_path)
    assert {e.split for e in layouts.find(tmp_path, splits={}, layout="images").entries} == {None}


def test_the_user_says_what_folders_are(tmp_path: Path) -> None:
    touch(tmp_path, "one/a/1.npy", "two/a/1.npy", "three/a/1.npy")
    given = split_names.parse("one=train,two=val,three=test")
    assert [e.split for e in layouts.find(tmp_path, splits=given).entries] == [
        "train",
        "val",
        "test",
    ]
    assert split_names.parse(None) is None
    assert split_names.parse("none") == {}
    for wrong in ("one", "one=exam", "=train", "one=train,"):
        with pytest.raises(UserError, match="--splits"):
            split_names.parse(wrong)
    for given in ({"one": "train"}, {"four": "test"}):
        with pytest.raises(UserError, match="--splits"):
            layouts.find(tmp_path, splits=given)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("VIS_FLUX", ("vis", "image")), ("NIR_Y_BGSUB", ("nir_y", "image")), ("SCI", ("", "image")),
        ("VIS_RMS", ("vis", "rms")), ("VIS_PSF", ("vis", "psf")), ("WHT", ("", "weight")),
        ("noise_map", ("", "rms")), ("psf", ("", "psf")), ("mask_extra_galaxies", ("", "mask")),
        ("mask_gui", ("", "other")), ("VAR_POISSON", ("", "other")), ("DQ", ("", "mask")),
        ("lens12_sci", ("lens12", "image")), ("img_7", ("7", "image")), ("mask_7", ("7", "mask")),
        ("data", ("", "image")), ("sample_3", ("sample_3", None)), ("PRIMARY", ("primary", None)),
    ],
)  # fmt: skip
def test_names_of_images_and_maps(name: str, expected: Any) -> None:
    assert named(name) == expected


def test_maps_belong_to_the_image_beside_them() -> None:
    maps, lone = maps_of(
        ["a/data.fits", "a/noise_map.fits", "a/psf.fits", "b/1_sci.fits", "b/1_rms.fits",
         "b/2_rms.fits", "c/noise_1.npy", "c/mask_9.npy"]
    )  # fmt: skip
    assert maps["a/data.fits"] == (("rms", "a/noise_map.fits"), ("psf", "a/psf.fits"))
    assert maps["b/1_sci.fits"] == (("rms", "b/1_rms.fits"),)
    assert set(lone) == {"b/2_rms.fits", "c/noise_1.npy"}
    assert maps["c/mask_9.npy"] == ()  # no mask here has an image, so the name means nothing
    assert maps_of(["n/noise_1.npy", "n/noise_2.npy"])[1] == []


def test_files_of_several_bands_make_one_image() -> None:
    files = ["s/1_g.fits", "s/1_r.fits", "s/2_g.fits", "s/3_r.fits", "s/3_g.fits", "s/1_z.fits"]
    with pytest.raises(UserError, match="--bands, from g,r,z"):
        bands_of(files, ())
    found = bands_of(files, ("r", "g"))
    assert found.samples == {
        "s/1_r.fits": ("s/1_r.fits", "s/1_g.fits"), "s/3_r.fits": ("s/3_r.fits", "s/3_g.fits"),
    }  # fmt: skip
    assert (found.by_name, list(found.other)) == (True, ["s/1_z.fits"])
    assert [file for file, _ in found.refused] == ["s/2_g.fits"]
    folders = ["ring_F277W/data.fits", "ring_F444W/data.fits"]
    with pytest.raises(UserError, match="F277W,F444W"):
        bands_of(folders, ())
    assert [*bands_of(folders, ["f444w"]).samples] == ["ring_F444W/data.fits"]
    assert not bands_of(["1.fits", "2.fits"], ["VIS"]).by_name  # then they are inside of files


def test_systems_are_joined_through_names_contents_and_places() -> None:
    contents = [bytes([n]) for n in (5, 4, 3, 3, 9, 8)]
    assert units(contents, ["a", "a", "", "a", "b", ""]) == [b"\x03"] * 4 + [b"\t", b"\x08"]
    places = [
        (10.0, 20.0),
        (10.0, 20.0 + 0.9 / 3600),
        (10.0, 20.0 + 1.8 / 3600),
        (11.0, 20.0),
        None,
    ]
    names = by_sky(places, 1.0)
    assert names[0] == names[1] == names[2] != names[3]
    assert names[4] == ""
    assert len(set(by_sky(places[:3], 0.5))) == 3
    assert len(set(by_sky([(359.99999, 0.0), (0.00001, 0.0)], 1.0))) == 1
    assert len(set(by_sky([(0.0, 89.9999), (180.0, 89.9999)], 1.0))) == 1


@pytest.fixture
def src(tmp_path: Path) -> Path:
    (folder := tmp_path / "src").mkdir()
    return folder


def _systems(root: Path, sky: bool = False) -> Path:
    """`{lens,other}/SYSTEM/*_{g,r}.fits`, five exposures of each system."""
    for k, name in enumerate(("lens", "other")):
        for system in range(10):
            folder = root / name / f"{name}{system}"
            folder.mkdir(parents=True)
            for i in range(5):
                for band in "gr":
                    hdu = fits.PrimaryHDU(image(1000 * k + 100 * system + 10 * i + (band == "g")))
                    if sky:
                        hdu.header.update(
                            CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1=10.0 + system,
                            CRVAL2=20.0 + k, CRPIX1=4.5, CRPIX2=4.5, CD1_1=-1e-4, CD2_2=1e-4,
                        )  # fmt: skip
                    hdu.writeto(folder / f"{i}_{band}.fits")
    return root


@pytest.mark.parametrize("group_by", ["folder", "/([a-z]+[0-9])_", "sky"])
def test_images_of_one_system_are_in_one_split(src: Path, tmp_path: Path, group_by: str) -> None:
    _systems(src, sky=group_by == "sky")
    options: dict[str, Any] = {"choice": Choice(bands=("r", "g")), "labels": ["lens", "other"]}
    if group_by != "folder":  # then the nearest folder is the class
        for folder in list(src.glob("*/*")):
            for file in folder.iterdir():
                file.rename(folder.parent / f"{folder.name}_{file.name}")
            folder.rmdir()
    manifest, _ = pack(src, tmp_path / "out", PackOptions(group_by=group_by, **options))
    packed = PackedSet(tmp_path / "out")
    assert (manifest.count, manifest.image_shape) == (100, (2, 8, 8))
    split_of: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        for row in packed.indices(split):
            name = packed.name_of(int(row)).replace("_", "/")
            split_of.setdefault(name.split("/")[1], set()).add(split)
    assert len(split_of) == 20
    assert all(len(splits) == 1 for splits in split_of.values())
    assert manifest.counts["test"] == {"lens": 5, "other": 5}


def test_one_place_on_the_sky_is_not_drawn_apart_silently(src: Path, tmp_path: Path) -> None:
    _systems(src, sky=True)
    options = PackOptions(choice=Choice(bands=("g",)), labels=None, group_by=None)
    with pytest.raises(UserError, match="--group-by"):  # a system is a folder here
        pack(src, tmp_path / "out", options)
    options = PackOptions(choice=Choice(bands=("g",)), layout="images")
    with pytest.raises(UserError, match=r"one place on the sky.*--group-by sky"):
        pack(src, tmp_path / "out", options)
    with pytest.raises(UserError, match="--group-by"):
        pack(src, tmp_path / "out", PackOptions(layout="images", group_by="sky:far"))
    with pytest.raises(UserError, match="--group-by"):
        pack(src, tmp_path / "out", replace(options, group_by="(["))


def test_a_system_in_two_supplied_splits_is_refused(src: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for i in range(12):
            folder = src / split / "a" / f"s{i}"
            folder.mkdir(parents=True)
            np.save(folder / "1.npy", image(i + 100 * (split == "test")))
    with pytest.raises(UserError, match=r"two splits.*--splits none"):
        pack(src, tmp_path / "out", PackOptions(group_by="folder"))


def _bands(**arrays: Any) -> fits.HDUList:
    hdus = [fits.PrimaryHDU(), *(fits.ImageHDU(a, name=name) for name, a in arrays.items())]
    return fits.HDUList(hdus)


def test_bands_and_maps_inside_of_files(src: Path, tmp_path: Path) -> None:
    rms = np.full((8, 8), 0.5)
    rms[0, 0] = 1e16
    for i in range(20):
        psf = np.eye(3) * 4
        arrays = {"VIS_FLUX": image(i), "VIS_PSF": psf, "VIS_RMS": rms}
        arrays |= {"NIR_Y_FLUX": image(100 + i), "NIR_Y_PSF": 2 * psf, "NIR_Y_RMS": 2 * rms}
        _bands(**arrays).writeto(src / f"{i}.fits")
    with pytest.raises(UserError, match="--bands, from VIS,NIR_Y"):
        pack(src, tmp_path / "out")
    manifest, _ = pack(src, tmp_path / "out", PackOptions(choice=Choice(bands=("vis", "NIR_Y"))))
    assert manifest.image_shape == (2, 8, 8)
    assert manifest.source["bands"] == "vis,NIR_Y"
    batch = PackedSet(tmp_path / "out").gather(np.arange(20))
    assert batch["badpix"][:, :, 0, 0].all()
    assert batch["badpix"].sum() == 40
    np.testing.assert_allclose(batch["weight"][0, :, 1, 1], [4.0, 1.0])
    psf = np.load(tmp_path / "out/psf.npy")
    assert psf.shape == (20, 2, 3, 3)
    np.testing.assert_allclose(psf.sum((2, 3)), 1, rtol=1e-6)


def test_maps_in_files_beside_the_image(src: Path, tmp_path: Path) -> None:
    for i in range(12):
        (folder := src / f"system{i}").mkdir()
        noise = np.full((8, 8), 2.0)
        mask = np.zeros((8, 8))
        mask[1, 2] = 1
        files = {
            "data": image(i),
            "noise_map": noise,
            "mask_extra_galaxies": mask,
            "psf": np.eye(3),
        }
        for name, array in files.items():
            fits.PrimaryHDU(array).writeto(folder / f"{name}.fits")
    manifest, report = pack(src, tmp_path / "out", PackOptions(group_by="folder"))
    assert (manifest.kind, manifest.count, report.files) == ("images", 12, 48)
    batch = PackedSet(tmp_path / "out").gather(np.arange(12))
    assert batch["badpix"].sum() == 12
    assert batch["badpix"][:, 0, 1, 2].all()
    np.testing.assert_allclose(batch["weight"][:, 0, 3, 3], 0.25)
    inputs, by_name = together(find([str(src)], tmp_path / "t.csv"), (), Passed())
    assert (len(inputs), by_name) == (12, False)
    assert [role for _, role, _ in inputs[0].maps] == ["mask", "rms", "psf"]


def test_nan_means_no_data_in_fits_and_damage_elsewhere(src: Path, tmp_path: Path) -> None:
    for i in range(12):
        pixels = image(i)
        pixels[:, 0] = np.nan
        fits.PrimaryHDU(pixels).writeto(src / f"{i}.fits")
    pack(src, tmp_path / "out")
    assert PackedSet(tmp_path / "out").gather(np.arange(12))["badpix"][:, :, :, 0].all()
    with pytest.raises(UserError, match="NaN"):
        pack(src, tmp_path / "no", PackOptions(choice=Choice(nan="refuse")))
    for path in list(src.iterdir()):
        np.save(path.with_suffix(".npy"), fits.getdata(path))
        path.unlink()
    with pytest.raises(UserError, match="NaN"):
        pack(src, tmp_path / "no")
    assert pack(src, tmp_path / "masked", PackOptions(choice=Choice(nan="mask")))[0].count == 12


def test_a_dry_run_tells_what_pack_does_and_writes_nothing(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import argparse

    _systems(src)
    (src / "notes.txt").write_text("x")
    (src / "lens/lens0/9_g.fits").write_bytes(b"damaged")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = [src, tmp_path / "out", "--bands", "g", "--group-by", "folder", "--jobs", 1]
    words += ["--max-bad", "0.1"]
    args = parser.parse_args([*map(str, words), "--dry-run"])
    assert command.run(args) == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    args.dry_run = False
    assert command.run(args) == 0
    packed = capsys.readouterr().out.splitlines()
    for line in packed[1:]:  # the same counts, and the same files left out
        if "out" not in line and "images/s" not in line:
            assert line in printed.splitlines() or "quarantined" in line, line
    assert "20 of 100 images" in printed
    assert "lens/lens0/9_g.fits" in printed
    with pytest.raises(UserError):
        survey(src, tmp_path / "out2", PackOptions(choice=Choice(bands=("g",))))
