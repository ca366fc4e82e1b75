"""Maps beside stacks, and ways to keep images that are read, or refused with what to type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from astropy.io import fits

from lensdist.data.packing import layouts
from lensdist.data.packing.pack import pack
from lensdist.data.reading.raw import BadFile
from lensdist.data.reading.readers import parse
from lensdist.utils.errors import UserError
from tests.unit.data_files import image
from tests.unit.test_data_kinds import N, classes, looked_at, pixels, splits, stack

pytestmark = pytest.mark.unit


@pytest.fixture
def src(tmp_path: Path) -> Path:
    (folder := tmp_path / "src").mkdir()
    return folder


def test_maps_beside_a_stack_belong_to_its_images(src: Path, tmp_path: Path) -> None:
    images, noise, mask = stack(1), 0.1 + stack(2), stack(3) < 0.1
    np.save(src / "images.npy", images)
    np.save(src / "noise_map.npy", noise)
    np.save(src / "mask.npy", mask)
    np.save(src / "psf.npy", image(4, 3, 3))  # one for all
    manifest, report = pack(src, tmp_path / "out")
    assert (manifest.count, report.quarantined) == (N, {})
    order = [
        int(json.loads(line)["name"].rpartition("/")[2])
        for line in (tmp_path / "out/files.jsonl").read_text().splitlines()
    ]
    np.testing.assert_allclose(
        np.load(tmp_path / "out/weights.npy")[:, 0], (noise**-2)[order], rtol=1e-5
    )
    np.testing.assert_array_equal(np.load(tmp_path / "out/badpix.npy")[:, 0], mask[order])
    assert np.load(tmp_path / "out/psf.npy").shape[-2:] == (3, 3)
    np.save(src / "noise_map.npy", noise[:-3])
    with pytest.raises(UserError, match=r"noise_map.npy holds 17 maps, and images.npy 20 images"):
        layouts.find(src)


def test_maps_belong_to_the_stack_that_is_called_alike(src: Path) -> None:
    for split, n in (("train", 30), ("test", 20)):
        np.save(src / f"X_{split}.npy", stack(n, n))
        np.save(src / f"y_{split}.npy", np.arange(n) % 2)
        np.save(src / f"rms_{split}.npy", 1 + stack(n, n))
    found = {entry.name: entry.maps for entry in layouts.find(src).entries}
    assert found["X_test.npy/3"] == ((0, "rms", "rms_test.npy/3"),)
    assert found["X_train.npy/29"] == ((0, "rms", "rms_train.npy/29"),)
    for path in src.iterdir():
        path.unlink()
    for name in ("noise", "lens", "other"):  # stacks of classes, not maps
        np.save(src / f"{name}.npy", stack(len(name)))
    listing = layouts.find(src)
    assert classes(listing) == {"lens": N, "noise": N, "other": N}
    assert not any(entry.maps for entry in listing.entries)


def test_validation_stacks_of_few_images_are_known_by_their_labels(src: Path) -> None:
    arrays: dict[str, Any] = {}
    for split, n in (("train", 30), ("val", 12), ("test", 10)):  # as MedMNIST has them
        arrays |= {f"{split}_images": stack(n, n), f"{split}_labels": np.arange(n)[:, None] % 2}
    np.savez(src / "set.npz", **arrays)
    found = layouts.find(src)
    assert (classes(found), splits(found)) == ({"0": 26, "1": 26}, {"train", "val", "test"})


@pytest.mark.parametrize("side", [8, 0])
def test_rows_of_numbers_are_not_images(src: Path, side: int) -> None:
    rows = stack(1, N, 64 if side else 65)
    np.savez(src / "set.npz", x=rows, y=np.arange(N))
    shape = rf"\({N}, 8, 8\)" if side else rf"\({N}, height, width\)"
    with pytest.raises(UserError, match=f"set.npz/x holds {N} rows.*reshape{shape}"):
        layouts.find(src)
    (src / "set.npz").unlink()
    np.save(src / "X.npy", rows)
    np.save(src / "y.npy", np.arange(N))
    with pytest.raises(UserError, match=r"X\.npy holds .* rows"):
        layouts.find(src)


def test_folders_of_one_image_each_are_not_classes(src: Path) -> None:
    with h5py.File(src / "set.h5", "w") as file:
        for i in range(N):
            file[f"sample_{i}/image"], file[f"sample_{i}/label"] = image(i), i % 2
    with pytest.raises(UserError, match=r"each of 20 folders.*--layout images.*--labels"):
        layouts.find(src)
    assert len(layouts.find(src, "images").entries) == N


def test_classes_in_the_names_of_files_are_noted(src: Path) -> None:
    for name in ("lens", "no-lens"):
        for i in range(N):
            np.save(src / f"{name}_{i}.npy", image(i))
    (note,) = layouts.find(src).notes
    assert "lens (20), no-lens (20)" in note
    for i in range(N):
        (src / f"no-lens_{i}.npy").unlink()
    assert layouts.find(src).notes == []


@pytest.mark.parametrize(
    ("array", "why"),
    [
        ({"images": 1}, "np.savez"),
        ([np.zeros((8, 8)), np.zeros((4, 4)), 1], "np.stack"),
        (np.where(np.eye(8), np.nan, 1), "--nan mask"),
        (np.zeros((20, 8, 9)), "--axes NHW"),
    ],
)
def test_files_that_are_no_image_say_what_to_do(src: Path, array: Any, why: str) -> None:
    kind = object if isinstance(array, list | dict) else None
    np.save(src / "a.npy", np.array(array, dtype=kind), allow_pickle=True)
    with pytest.raises(BadFile, match=why):
        parse((src / "a.npy").read_bytes(), ".npy")


def test_numbers_and_names_of_any_kind(src: Path, tmp_path: Path) -> None:
    values = (200 * image(1, 8, 9)).astype("u1")
    arrays = {
        "fortran": np.asfortranarray(values),
        "big endian": values.astype(">f8"),
        "whole": values.astype(">i2"),
        "half": values.astype("f2"),
    }
    (away := tmp_path / "away").mkdir()
    (src / "lens").symlink_to(away)
    for i, (name, array) in enumerate(arrays.items()):
        with (away / f"{name} {i}.NPY").open("wb") as file:
            np.save(file, array + i)  # copies would be left out
    fits.PrimaryHDU(values.astype(">i4") + 5).writeto(away / "5.FITS")
    for i in (6, 7):  # parts of one stack
        np.save(away / f"stack {i}.npy", np.asfortranarray(stack(i, N, 8, 9)))
    found = looked_at(src)
    assert len(found.surveys) == 5 + 2 * N
    for i, name in enumerate(arrays):
        np.testing.assert_array_equal(pixels(src, f"lens/{name} {i}.NPY")[0], values + i)
    np.testing.assert_array_equal(pixels(src, "lens/5.FITS")[0], values + 5)
    np.testing.assert_array_equal(pixels(src, "lens/stack 6.npy/3")[0], stack(6, N, 8, 9)[3])
