"""What people keep images in: stacks, archives, HDF5, pictures, and tables beside them."""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from lensdist.commands import pack as pack_command
from lensdist.data.packing import layouts
from lensdist.data.packing.listing import Listing
from lensdist.data.packing.pack import PackOptions, Surveyed, pack, survey
from lensdist.data.packing.table import Facts, parse_columns, read_table
from lensdist.data.reading import containers
from lensdist.data.reading.raw import BadFile
from lensdist.data.reading.readers import Choice, parse, read_together
from lensdist.data.reading.resize import Cut
from lensdist.utils.errors import UserError
from tests.unit.data_files import image

N = 20


@pytest.fixture
def src(tmp_path: Path) -> Path:
    (folder := tmp_path / "src").mkdir()
    return folder


def stack(seed: int, n: int = N, *shape: int) -> Any:
    return image(seed, n, *(shape or (8, 8)))


def classes(listing: Listing) -> dict[str, int]:
    """Count the images of each class, in all splits."""
    names = [*listing.labels, "-"]
    found = [names[entry.label] for entry in listing.entries]
    return {name: found.count(name) for name in sorted({*found})}


def splits(listing: Listing) -> set[str | None]:
    return {entry.split for entry in listing.entries}


def looked_at(src: Path, **options: Any) -> Surveyed:
    return survey(src, src.parent / "out", PackOptions(**options))


def pixels(src: Path, name: str) -> Any:
    """Return the image that a sample's name means."""
    return read_together([src / name], [], Choice()).raw.image


def test_a_stack_is_a_folder_of_images(src: Path) -> None:
    images = stack(1)
    np.save(src / "images.npy", images)
    for root in (src, src / "images.npy"):  # the folder, or the file itself
        found = layouts.find(root)
        assert (found.kind, len(found.entries)) == ("images", N)
        assert found.entries[17].name == "images.npy/17"
    np.testing.assert_array_equal(pixels(src, "images.npy/17")[0], images[17])


@pytest.mark.parametrize("name", ["labels", "y", "images_labels", "targets"])
def test_labels_lie_beside_a_stack(src: Path, name: str) -> None:
    np.save(src / "images.npy", stack(1, N, 3, 8, 8))
    np.save(src / f"{name}.npy", np.arange(N) % 3)
    found = layouts.find(src)
    assert classes(found) == {"0": 7, "1": 7, "2": 6}
    named = layouts.find(src, labels=["no", "sphere", "vort"])
    assert [named.labels[e.label] for e in sorted(named.entries, key=lambda e: e.name)][:1] == [
        "no"
    ]
    assert classes(named) == {"no": 7, "sphere": 7, "vort": 6}
    np.save(src / f"{name}.npy", np.array(["lens", "other"])[np.arange(N) % 2])
    assert classes(layouts.find(src)) == {"lens": 10, "other": 10}
    np.save(src / f"{name}.npy", np.eye(3)[np.arange(N) % 3])
    assert classes(layouts.find(src)) == {"0": 7, "1": 7, "2": 6}
    np.save(src / f"{name}.npy", np.arange(N - 1))
    with pytest.raises(UserError, match=f"{N - 1} labels.*{N} images"):
        layouts.find(src)


def test_names_of_stacks_give_splits_and_labels(src: Path) -> None:
    for split, n in (("train", 30), ("test", 20)):
        np.save(src / f"X_{split}.npy", stack(n, n))
        np.save(src / f"y_{split}.npy", np.arange(n) % 2)
    found = layouts.find(src)
    assert (classes(found), splits(found)) == ({"0": 25, "1": 25}, {None, "test"})
    (src / "y_test.npy").unlink()
    found = layouts.find(src)
    assert classes(found) == {"-": 20, "0": 15, "1": 15}  # test images without labels


def test_a_stack_for_each_class(src: Path) -> None:
    for i, name in enumerate(("no", "sphere", "vort")):
        np.save(src / f"{name}.npy", stack(i, N + i))
    found = looked_at(src)
    assert classes(found.listing) == {"no": N, "sphere": N + 1, "vort": N + 2}
    assert found.report.files == 3 * N + 3
    (src / "train").mkdir()
    (src / "test").mkdir()
    for path in src.glob("*.npy"):
        for split in ("train", "test"):
            np.save(src / split / path.name, np.load(path) + (split == "test"))
        path.unlink()
    found_in = layouts.find(src)
    assert (classes(found_in)["vort"], splits(found_in)) == (2 * (N + 2), {None, "test"})


def test_what_stacks_are_is_not_guessed(src: Path) -> None:
    for name in ("images", "data"):
        np.save(src / f"{name}.npy", stack(1))
    with pytest.raises(UserError, match="--hdu"):
        layouts.find(src)
    found = layouts.find(src, choice=Choice("data"))
    assert len(found.entries) == N
    assert found.skipped["it is not the array that --hdu data chooses"] == 1
    (src / "data.npy").unlink()
    np.save(src / "images.npy", stack(1, 9, 20, 20))  # nine bands, or nine images
    assert len(layouts.find(src).entries) == 1
    assert len(layouts.find(src, axes="NHW").entries) == 9
    np.save(src / "labels.npy", np.arange(9))
    assert len(layouts.find(src).entries) == 9
    (src / "labels.npy").unlink()
    np.save(src / "images.npy", stack(1, N, 20, 20, 3))
    assert looked_at(src).surveys.popitem()[1].shapes == ((3, 20, 20),)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_with_x_and_y(src: Path, save: Callable[..., None]) -> None:
    images = stack(1)
    save(src / "set.npz", x=images, y=np.arange(N) % 2, ra=np.arange(N))
    for root in (src, src / "set.npz"):
        found = layouts.find(root)
        assert classes(found) == {"0": 10, "1": 10}
        assert found.skipped == {
            "labels of the images beside them": 1,
            "an array of 1 axes, which is not an image": 1,
        }
    np.testing.assert_array_equal(pixels(src, "set.npz/x/3")[0], images[3])
    save(src / "set.npz", x_train=images, y_train=np.arange(N) % 2,
         x_test=images[::-1] + 1, y_test=np.arange(N) % 2)  # fmt: skip
    found = layouts.find(src)
    assert (classes(found), splits(found)) == ({"0": 20, "1": 20}, {None, "test"})


def test_hdf5_has_datasets_and_groups(src: Path) -> None:
    images = stack(1)
    with h5py.File(src / "set.h5", "w") as file:
        file["images"] = images
        file["labels"] = ["lens", "other"] * (N // 2)
        file["redshift"] = np.arange(N)
        file["link"] = h5py.ExternalLink("/etc/passwd", "/")
    found = looked_at(src / "set.h5")
    assert classes(found.listing) == {"lens": 10, "other": 10}
    np.testing.assert_array_equal(pixels(src, "set.h5/images/3")[0], images[3])
    (src / "set.h5").unlink()
    with h5py.File(src / "groups.hdf5", "w") as file:
        for split in ("train", "test"):
            for name in ("lens", "other"):
                for i in range(12):
                    file[f"{split}/{name}/{i:03}"] = image(hash((split, name, i)) % 9999)
    found_in = layouts.find(src)
    assert (classes(found_in), splits(found_in)) == ({"lens": 24, "other": 24}, {None, "test"})
    with h5py.File(src / "groups.hdf5", "w") as file:
        file["a/images"], file["b/data"] = images, images
        file["images"], file["cutouts/x"] = images, images
        file["stack"] = images
    with pytest.raises(UserError, match=r"images 20x8x8.*stack 20x8x8.*--hdu"):
        layouts.find(src)
    (src / "groups.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n damaged")
    with pytest.raises(UserError, match="cannot be read"):
        layouts.find(src)


def test_hdf5_without_h5py_says_what_to_install(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (src / "a.h5").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install 'lensdist\[hdf5\]'"):
        layouts.find(src)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UserError, match="pip install pillow"):
        parse(b"x", ".png")


def test_a_zip_is_read_without_unpacking(src: Path) -> None:
    images = stack(1)
    with zipfile.ZipFile(src / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, k in (("lens", 0), ("other", 100)):
            for i in range(12):
                with archive.open(f"data/{name}/{i}.npy", "w") as file:
                    np.save(file, image(k + i))
        archive.writestr("__MACOSX/data/lens/._1.npy", "x")
        archive.writestr("notes.txt", "x")
        archive.writestr("/etc/1.npy", "x")
    found = looked_at(src / "set.zip")
    assert classes(found.listing) == {"lens": 12, "other": 12}
    assert found.report.skipped.total() == 3
    np.testing.assert_array_equal(pixels(src, "set.zip/data/other/3.npy")[0], image(103))
    with zipfile.ZipFile(src / "set.zip", "w") as archive:
        for name in ("images", "labels"):
            with archive.open(f"{name}.npy", "w") as file:
                np.save(file, images if name == "images" else np.arange(N) % 2)
    assert classes(layouts.find(src)) == {"0": 10, "1": 10}
    np.testing.assert_array_equal(pixels(src, "set.zip/images.npy/3")[0], images[3])
    assert [path.name for path in src.iterdir()] == ["set.zip"]


def test_a_zip_that_unpacks_to_too_much_is_refused(
    src: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(src / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.npy", bytes(3 << 20))
    monkeypatch.setattr(containers, "_MAX_STACK", 1 << 20)
    with pytest.raises(BadFile, match="200 times"):
        containers.members(src / "set.zip")
    monkeypatch.setattr(containers, "_MAX_MEMBERS", 0)
    with pytest.raises(BadFile, match="files"):
        containers.members(src / "set.zip")


@pytest.mark.parametrize(
    ("mode", "ending", "bands"),
    [("L", "png", 1), ("RGB", "png", 3), ("RGB", "jpg", 3), ("L", "jpeg", 1), ("I;16", "png", 1),
     ("F", "tif", 1), ("P", "png", 3), ("RGBA", "png", 3), ("LA", "png", 1), ("L", "tiff", 1)],
)  # fmt: skip
def test_pictures(src: Path, mode: str, ending: str, bands: int) -> None:
    shape = (9, 11, len(Image.new(mode, (1, 1)).getbands()))
    values = (255 * image(1, *shape)).astype({"F": "f4", "I;16": "u2"}.get(mode, "u1"))
    values = values[..., 0] if shape[2] == 1 else values
    if mode == "RGBA":
        values[..., 3] = 255
        values[2, 3, 3] = 0
    picture = Image.fromarray(values) if mode != "P" else Image.fromarray(values).convert("P")
    picture.save(src / f"1.{ending}")
    reading = parse((src / f"1.{ending}").read_bytes(), f".{ending}")
    assert reading.image.shape == (bands, 9, 11)
    assert reading.stretched == (mode != "F")
    if mode in ("L", "RGB", "F", "I;16") and ending not in ("jpg", "jpeg"):
        whole = values.reshape(9, 11, -1).transpose(2, 0, 1)
        np.testing.assert_array_equal(reading.image, whole.astype("f4"))
    if mode == "RGBA":
        assert reading.badpix is not None
        assert reading.badpix.sum() == 3


def test_pictures_are_said_once_to_be_stretched(src: Path, tmp_path: Path) -> None:
    for i in range(12):
        Image.fromarray((255 * image(i, 9, 9, 3)).astype("u1")).save(src / f"{i}.png")
    manifest, report = pack(src, tmp_path / "packed")
    assert manifest.image_shape == (3, 9, 9)
    assert manifest.source["stretched"] is True
    assert sum("stretched" in note for note in report.notes) == 1
    stamps(src)  # now the pictures are previews
    found = looked_at(src)
    assert len(found.surveys) == N
    assert found.report.skipped == {"other file type (.png)": 12}


@pytest.mark.parametrize(
    ("low", "high"),
    [("LR/{}.npy", "HR/{}.npy"), ("x/{}.npy", "y/{}.npy"), ("low/a{}.npy", "high/b{}.npy"),
     ("{}_LR.npy", "{}_HR.npy"), ("lr_{}.npy", "hr_{}.npy"),
     ("low_res/s_{}.npy", "high_res/s_{}.npy"),
     ("train/x/{}.npy", "train/y/{}.npy")],
)  # fmt: skip
def test_pairs_as_people_name_them(src: Path, low: str, high: str) -> None:
    for i in range(3):
        for name, n in ((low, 4), (high, 8)):
            (path := src / name.format(i)).parent.mkdir(parents=True, exist_ok=True)
            np.save(path, image(100 * n + i, n, n))
    found = layouts.find(src)
    assert found.kind == "pairs"
    assert [(e.name, e.target) for e in found.entries] == [
        (low.format(i), high.format(i)) for i in range(3)
    ]


def test_stacks_of_pairs(src: Path) -> None:
    np.savez(src / "set.npz", x=stack(1, N, 4, 4), y=stack(2, N, 8, 8))
    found = looked_at(src)
    assert (found.listing.kind, len(found.listing.entries)) == ("pairs", N)
    assert next(iter(found.surveys.values())).shapes == ((1, 4, 4), (1, 8, 8))


def stamps(src: Path, n: int = N) -> None:
    for i in range(n):
        fits.PrimaryHDU(image(i)).writeto(src / f"obj{i}.fits")


def table(src: Path, text: str) -> Path:
    (path := src / "labels.csv").write_text(text)
    return path


def test_a_table_gives_labels_splits_systems_and_places(src: Path, tmp_path: Path) -> None:
    stamps(src)
    rows = [
        f"obj{i},{'lens' if i % 2 else 'other'},s{i // 4},{i / 10},{-i},{0.5}" for i in range(N)
    ]
    path = table(src, "\n".join(["# survey", "ID;kind;Sys;RA;DEC;z".replace(";", ","), *rows]))
    with pytest.raises(UserError, match="--labels"):  # it may hold the labels
        layouts.find(src)
    columns = {"label": "kind"}
    options = PackOptions(table=path, columns=columns, group_by="column:Sys")
    manifest, report = pack(src, tmp_path / "out", options)
    assert manifest.labels == ["lens", "other"]
    assert any("kind" in note for note in report.notes)
    lines = [json.loads(line) for line in (tmp_path / "out/files.jsonl").read_text().splitlines()]
    assert {line["group"] for line in lines} == {f"s{i}" for i in range(5)}
    assert {(line["ra"], line["dec"], line["redshift"]) for line in lines} == {
        (i / 10, -float(i), 0.5) for i in range(N)
    }
    split = np.load(tmp_path / "out/split.npy")
    by_system: dict[str, set[int]] = {}
    for line, code in zip(lines, split.tolist(), strict=True):
        by_system.setdefault(line["group"], set()).add(code)
    assert all(len(codes) == 1 for codes in by_system.values())


def test_rows_name_files_by_path_name_stem_or_folder(src: Path) -> None:
    for text in ("a/1.npy", "1.npy", "a/1", "1", "a"):
        found = read_table(table(src, f"name,label\n{text},x\n"), {}).match({"a/1.npy": ""})
        assert found == {"a/1.npy": Facts("x")}, text
    found = read_table(table(src, "name\tsplit\nsys\tvalid\n"), {}).match({"sys_g.fits": "sys"})
    assert found["sys_g.fits"].split == "val"


@pytest.mark.parametrize(
    ("text", "columns", "why"),
    [
        ("a,b\n1,2\n", {}, "name=COLUMN, from a, b"),
        ("id,class,type\nobj1,a,b\n", {}, "--columns label=class"),
        ("id,class\nnone,a\n", {}, "no row.*--columns name"),
        ("id,name,class\nobj1,obj2,a\nobj2,obj1,b\n", {}, "differently"),
        ("id,class\nobj1,a\nobj1,b\n", {}, "several rows"),
        ("id,class\nobj1\n", {}, "not as many values"),
        ("id,id\nobj1,a\n", {}, "one name"),
        ("id,split\nobj1,exam\n", {}, "exam"),
        ("id,ra,dec\nobj1,1,x\n", {}, "dec"),
        ("id,class\n", {}, "no rows"),
        ("id,class\nobj1,a\n", {"label": "kind"}, "label=kind"),
    ],
)
def test_tables_that_are_not_clear(src: Path, text: str, columns: dict[str, str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        read_table(table(src, text), columns).match({"obj1.npy": "", "obj2.npy": ""})
    with pytest.raises(UserError, match="--columns"):
        parse_columns("kind=label")


def test_images_without_a_row_are_named(src: Path) -> None:
    stamps(src)
    path = table(src, "id,class\n" + "\n".join(f"obj{i},{i % 2}" for i in range(N - 1)))
    found = looked_at(src, table=path, max_bad=0.1)
    assert found.report.quarantined == {f"obj{N - 1}.fits": "no label is given for it"}
    assert classes(found.listing) == {"0": 10, "1": 9}


def test_mixed_sizes_come_to_one_by_place(src: Path, tmp_path: Path) -> None:
    for i in range(12):
        hdu = fits.PrimaryHDU(image(i, 20 + i % 3, 22))
        hdu.header.update(
            CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1=10.0 + i, CRVAL2=20.0,
            CRPIX1=9.0, CRPIX2=12.0, CD1_1=-1e-4, CD2_2=1e-4,
        )  # fmt: skip
        hdu.writeto(src / f"obj{i}.fits")
    with pytest.raises(UserError, match="shape"):
        looked_at(src)
    path = table(src, "id,ra,dec\n" + "\n".join(f"obj{i},{10 + i},20" for i in range(12)))
    cut = Cut(crop=(8, 10), centre="catalogue")
    manifest, _ = pack(src, tmp_path / "out", PackOptions(table=path, choice=Choice(cut=cut)))
    assert manifest.image_shape == (1, 8, 10)
    images = np.load(tmp_path / "out/images.npy")
    wanted = {image(i, 20 + i % 3, 22)[8:16, 4:14].astype("f4").tobytes() for i in range(12)}
    assert {one[0].tobytes() for one in images} == wanted


def command(*words: object) -> int:
    parser = argparse.ArgumentParser()
    pack_command.add_arguments(parser)
    return pack_command.run(parser.parse_args([*map(str, words), "--jobs", "1"]))


def test_the_command_line_says_all_of_it(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(N):
        np.save(src / f"{i}.npy", image(i, 12 + i % 2, 14, 3))
    path = table(src, "id,class\n" + "\n".join(f"{i},{i % 2}" for i in range(N)))
    words = [src, tmp_path / "out", "--labels", path, "--labels", "lens,other"]
    words += ["--resample", "0.2", "--pixel-scale", "0.1", "--crop", "5x6", "--centre", "brightest"]
    assert command(*words, "--pad", 6, "--axes", "HWC", "--dry-run") == 0
    said = capsys.readouterr().out
    for line in ("3x6x6", "0.2 arcsec", "lens", "found 20 files: 20 used, 0 quarantined"):
        assert line in said
    assert sorted(tmp_path.iterdir()) == [src]
    for wrong in (["--centre", "brightest"], ["--labels", path, "--labels", path]):
        with pytest.raises(UserError):
            command(src, tmp_path / "out", *wrong)
    for wrong in (["--crop", "0"], ["--crop", "4x"], ["--centre", "10"], ["--axes", "WHC"]):
        with pytest.raises(SystemExit):
            command(src, tmp_path / "out", *wrong)


def test_a_folder_that_is_not_understood_is_reported_too(src: Path, tmp_path: Path) -> None:
    stamps(src)
    (src / "notes.txt").write_text("x")
    table(src, "id,class\n")
    with pytest.raises(UserError, match=r"--labels .*out\.report\.json"):
        pack(src, tmp_path / "out")
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["skipped_examples"]["other file type (.txt)"] == ["notes.txt"]
    assert "--labels" in report["notes"][0]


def test_of_a_stack_every_image_is_counted(src: Path, tmp_path: Path) -> None:
    images = stack(1)
    images[3], images[5] = 0, images[4]
    np.save(src / "images.npy", images)
    np.save(src / "labels.npy", np.arange(N) // 10)
    manifest, report = pack(src, tmp_path / "out", PackOptions(max_bad=0.2), jobs=1)
    assert report.files == N == manifest.count + len(report.quarantined)
    assert report.quarantined.keys() == {"images.npy/3", "images.npy/5"}
    assert report.skipped == {"labels of the images beside them": 1}
