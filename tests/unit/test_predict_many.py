"""Stacks, archives, HDF5 and pictures are predicted image by image, named as `pack` names them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from lensdist.cli import main
from lensdist.data.packing import layouts
from lensdist.data.reading.folders import Passed
from lensdist.data.reading.raw import BadFile
from lensdist.data.reading.readers import Choice
from lensdist.data.reading.resize import Cut
from lensdist.inference.comparable import Wanted
from lensdist.inference.frames import read_item
from lensdist.inference.inputs import find, together
from lensdist.inference.predict import predict_files
from lensdist.utils.errors import UserError
from tests.unit.exported import write_model
from tests.unit.predict_samples import Classifier, SuperResolver, inputs, pixels, rows, sky_hdu

pytestmark = pytest.mark.unit
N = 20


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """Twenty images in each of a stack, an archive, HDF5 and a .zip, a class stack, pictures."""
    (folder := tmp_path / "in").mkdir()
    np.save(folder / "images.npy", pixels(1, N, 8, 8))
    np.save(folder / "labels.npy", np.arange(N) % 2)
    for name in ("arrays", "five", "packed", "classes", "seen"):
        (folder / name).mkdir()
    np.savez(folder / "arrays" / "set.npz", x=pixels(2, N, 8, 8), y=np.arange(N))
    with h5py.File(folder / "five" / "set.h5", "w") as file:
        file["train/x"], file["train/y"] = pixels(3, N, 8, 8), np.arange(N)
    with zipfile.ZipFile(folder / "packed" / "set.zip", "w") as archive:
        for i in range(3):
            with archive.open(f"lens/{i}.npy", "w") as member:
                np.save(member, pixels(10 + i))
    for i, name in enumerate(("lens", "other")):
        np.save(folder / "classes" / f"{name}.npy", pixels(4 + i, N, 8, 8))
    Image.fromarray((255 * pixels(6)).astype("u1")).save(folder / "seen" / "1.png")
    return folder


def test_names_and_images_are_those_of_pack(src: Path, tmp_path: Path) -> None:
    dest = tmp_path / "t.csv"
    model = Classifier()
    assert predict_files(model, inputs(src, dest=dest), dest) == {}
    found = {str(Path(row["file"]).relative_to(src)): row for row in rows(dest)}
    for folder in (src / "arrays", src / "five", src / "packed", src / "classes"):
        names = {f"{folder.name}/{entry.name}" for entry in layouts.find(folder).entries}
        assert names == {name for name in found if name.startswith(f"{folder.name}/")}
    assert len(found) == 5 * N + 3 + 1
    for name, images in (("images.npy", 1), ("arrays/set.npz/x", 2), ("five/set.h5/train/x", 3)):
        logits = [float(found[f"{name}/{i}"][f"logit_{model.labels[0]}"]) for i in range(N)]
        np.testing.assert_allclose(logits, pixels(images, N, 8, 8).mean((1, 2)), rtol=1e-6)
    one = inputs(src / "images.npy" / "17", dest=dest)  # as the table names it
    assert [str(each.path) for each in one] == [str(src / "images.npy" / "17")]


def test_files_that_cannot_be_opened_and_single_images_are_skipped_and_named(
    src: Path, tmp_path: Path
) -> None:
    images = pixels(1, N, 8, 8)
    images[3], images[5] = 0, np.nan
    np.save(src / "images.npy", images)
    (src / "packed" / "bad.h5").write_bytes(b"\x89HDF\r\n\x1a\n damaged")
    (src / "packed" / "cut.zip").write_bytes((src / "packed" / "set.zip").read_bytes()[:200])
    dest, passed = tmp_path / "t.csv", Passed()
    given = find([str(src)], dest, passed)
    skipped = predict_files(Classifier(), given, dest)
    names = {str(one.path.relative_to(src)): why for one, why in skipped.items()}
    assert names.keys() == {"images.npy/3", "images.npy/5", "packed/bad.h5", "packed/cut.zip"}
    assert "constant" in names["images.npy/3"]
    assert "cannot be read" in names["packed/bad.h5"]
    assert len(given) == len(rows(dest)) + len(skipped)
    assert passed["labels of the images beside them"] == 3


def test_a_model_of_images_writes_a_file_for_each_of_a_stack(src: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(src / "packed" / "sky.zip", "w") as archive:
        fits.HDUList([fits.PrimaryHDU(), sky_hdu(pixels(4))]).writeto(tmp_path / "sky.fits")
        archive.write(tmp_path / "sky.fits", "far/sky.fits")
    dest = tmp_path / "out"
    assert predict_files(SuperResolver(), inputs(src, dest=dest), dest) == {}
    assert np.load(dest / "images" / "17.npy").shape == (16, 16)
    assert np.load(dest / "five" / "set" / "train" / "x" / "0.npy").shape == (16, 16)
    header = fits.getheader(dest / "packed" / "sky" / "far" / "sky.fits", 1)
    assert (header["CD2_2"], header["NAXIS1"]) == (1e-5, 16)
    (src / "images").mkdir()
    np.save(src / "images" / "17.npy", pixels(1))
    with pytest.raises(UserError, match="would both be written"):
        predict_files(SuperResolver(), inputs(src, dest=dest), dest, overwrite=True)


def test_axes_and_sizes_are_chosen_as_in_pack(src: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.npy"
    np.save(few, pixels(1, 9, 12, 12))
    (one,) = find([str(few)], tmp_path / "t.csv")  # nine bands, or nine images
    with pytest.raises(BadFile, match="--axes NHW"):
        read_item(one, False, wanted=Wanted((8, 8), bands=1))
    nine = find([str(few)], tmp_path / "t.csv", axes="NHW")
    assert len(nine) == 9
    with pytest.raises(BadFile, match="--crop 8"):
        read_item(nine[0], False, wanted=Wanted((8, 8), bands=1))
    cut = Choice(cut=Cut(crop=(8, 8)))
    item = read_item(nine[2], False, cut, Wanted((8, 8), bands=1))
    assert item.changes == "--crop 8x8"
    np.testing.assert_array_equal(item.reading.image[0], pixels(1, 9, 12, 12)[2, 2:10, 2:10])
    (tmp_path / "two").mkdir()
    for name in ("images", "data"):
        np.save(tmp_path / "two" / f"{name}.npy", pixels(1, N, 8, 8))
    assert len(find([str(tmp_path / "two")], tmp_path / "t.csv")) == 2 * N
    np.savez(tmp_path / "two.npz", a_images=pixels(1, N, 8, 8), b=pixels(2, N, 8, 8))
    found = find([str(tmp_path / "two.npz")], tmp_path / "t.csv", chosen="b")
    assert [str(each.name) for each in found][:2] == ["two/b/0.npy", "two/b/1.npy"]


def test_maps_beside_a_stack_are_given_to_the_model(tmp_path: Path) -> None:
    mask = pixels(2, N, 8, 8) < 0.2
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["images"], file["mask"] = pixels(1, N, 8, 8), mask
    dest, model = tmp_path / "t.csv", Classifier()
    joined, _ = together(inputs(tmp_path / "set.h5", dest=dest), (), Passed())
    assert predict_files(model, joined, dest) == {}
    bad = [float(row[f"logit_{model.labels[1]}"]) for row in rows(dest)]
    assert bad == mask.sum((1, 2)).tolist()


def test_the_command_takes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path)
    np.save(tmp_path / "images.npy", pixels(1, 3, 70, 66))
    dest = tmp_path / "t.csv"
    words: list[Any] = ["predict", tmp_path, tmp_path / "images.npy", "--out", dest]
    words += ["--device", "cpu", "--axes", "NHW", "--crop", "64"]
    assert main([*map(str, words)]) == 0
    assert f"predicted 3 of 3 images, 0 skipped: {dest}" in capsys.readouterr().out
    assert [row["changes"] for row in rows(dest)] == ["--crop 64x64"] * 3
    assert main([*map(str, words), "--at", "1,2"]) == 2
    assert "leave out --crop" in capsys.readouterr().err
    write_model(tmp_path / "mae", "mae")
    words[1], words[4] = tmp_path / "mae", tmp_path / "drawn"
    assert main([*map(str, words)]) == 2
    assert "lensdist pack" in capsys.readouterr().err
    np.save(tmp_path / "images.npy", pixels(1, 3, 64, 64))
    assert main([*map(str, words[:-2])]) == 0
    assert capsys.readouterr().out.count("is not known") == 1  # whether they are unlike
