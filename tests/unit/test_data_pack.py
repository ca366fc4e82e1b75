"""`lensdist pack`: folders become sets; what is bad is named and does not stop the rest."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from lensdist.commands import pack as command
from lensdist.data.dataset import PackedSet
from lensdist.data.manifest import Manifest
from lensdist.data.packing.pack import PackOptions, pack
from lensdist.data.packing.report import Report
from lensdist.data.packing.writer import Instrument
from lensdist.data.reading.object_arrays import save_axion
from lensdist.data.reading.readers import Choice
from lensdist.utils.errors import RunError, UserError
from tests.unit import data_files
from tests.unit.data_files import image


def packed(src: Path, dest: Path, **options: Any) -> tuple[Manifest, Report]:
    return pack(src, dest, PackOptions(**options))


def rows(dest: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (dest / "files.jsonl").read_text().splitlines()]


@pytest.fixture
def src(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    return tmp_path / "src"


def test_common_task_keeps_val_as_test_and_draws_validation_from_train(
    src: Path, tmp_path: Path
) -> None:
    manifest, report = pack(data_files.common(src), tmp_path / "out")
    assert manifest.counts == {
        split: dict.fromkeys(("no", "sphere", "vort"), n)
        for split, n in (("train", 18), ("val", 2), ("test", 4))
    }
    assert report.skipped == {"__MACOSX": 72}
    names = [str(row["name"]) for row in rows(tmp_path / "out")]
    found = PackedSet(tmp_path / "out")
    assert all("/val/" in names[i] for i in found.indices("test"))
    assert all("/train/" in names[i] for i in found.indices("val"))
    batch = found.gather(np.arange(len(found)))
    for name, pixels, label in zip(names, batch["image"], batch["label"], strict=True):
        np.testing.assert_array_equal(pixels.numpy(), np.load(src / name).astype(np.float32))
        assert f"/{manifest.labels[label]}/" in name


def test_model_ii_keeps_the_axion_masses(src: Path, tmp_path: Path) -> None:
    manifest, _ = pack(data_files.model_ii(src), tmp_path / "out")
    assert manifest.labels == ["no_sub", "cdm", "axion"]
    assert manifest.counts["test"] == {"no_sub": 2, "cdm": 2, "axion": 2}
    batch = PackedSet(tmp_path / "out").gather(np.arange(60))
    assert batch["mass"][:40].isnan().all()
    np.testing.assert_allclose(batch["mass"][40:], [10.0 ** -(23 + i / 100) for i in range(20)])
    assert batch["image"].max() > 1  # raw units stay


def test_pairs_stay_paired(src: Path, tmp_path: Path) -> None:
    manifest, _ = pack(data_files.pairs(src), tmp_path / "out")
    shapes = (manifest.kind, manifest.image_shape, manifest.target_shape)
    assert shapes == ("pairs", (1, 4, 4), (1, 8, 8))
    batch = PackedSet(tmp_path / "out").gather(np.arange(12))
    means = batch["target"].reshape(12, 1, 4, 2, 4, 2).mean((3, 5))
    np.testing.assert_allclose(means, batch["image"], atol=1e-6)
    assert rows(tmp_path / "out")[10]["name"] == "Dataset/LR/sample10.npy"


def test_unlabelled_fits_stamps_bring_scale_and_zero_point(src: Path, tmp_path: Path) -> None:
    for i in range(20):
        hdu = fits.PrimaryHDU(image(i))
        hdu.header["CTYPE1"], hdu.header["CTYPE2"] = "RA---TAN", "DEC--TAN"
        hdu.header["CDELT1"], hdu.header["CDELT2"] = -0.1 / 3600, 0.1 / 3600
        hdu.header["ZP"] = 25.0
        hdu.writeto(src / f"{i}.fits")
    manifest, _ = pack(src, tmp_path / "out")
    assert (manifest.kind, manifest.zero_point_mag) == ("images", 25.0)
    assert manifest.pixel_scale_arcsec == pytest.approx(0.1)
    assert manifest.counts["train"] == {"unlabelled": 16}
    said, _ = packed(src, tmp_path / "said", instrument=Instrument(0.2, None, 1.0))
    assert (said.pixel_scale_arcsec, said.zero_point_mag) == (0.2, 1.0)
    np.save(src / "21.npy", image(99))
    mixed, report = pack(src, tmp_path / "mixed")
    assert mixed.pixel_scale_arcsec is None
    assert any("pixel scale" in note for note in report.notes)


def test_masks_and_weights_are_packed_for_all_once_any_file_has_them(
    src: Path, tmp_path: Path
) -> None:
    for i in range(12):
        np.save(src / f"{i}.npy", image(i))
    bad, weight = np.eye(8, dtype=bool), np.full((8, 8), 2.0)
    np.savez(src / "5.npz", image=np.where(bad, np.nan, image(50)), badpix=bad, weight=weight)
    pack(src, tmp_path / "out")
    at = [row["name"] for row in rows(tmp_path / "out")].index("5.npz")
    batch = PackedSet(tmp_path / "out").gather(np.arange(13))
    np.testing.assert_array_equal(batch["badpix"][at, 0], bad)
    assert batch["badpix"].sum() == 8
    assert (batch["image"][at, 0].numpy()[bad] == 0).all()
    assert (batch["weight"][at] == 2).all()
    assert batch["weight"].sum() == 64 * (12 + 2)


def test_lr_takes_the_bad_pixels_and_weights_of_hr(src: Path, tmp_path: Path) -> None:
    data_files.pairs(src)
    for i in range(12):
        path = src / f"Dataset/HR/sample{i}.npy"
        bad, weight = np.zeros((1, 8, 8), bool), np.arange(1.0, 65).reshape(1, 8, 8)
        bad[0, 2 * (i % 4), 1] = True
        np.savez(path.with_suffix(".npz"), image=np.load(path), badpix=bad, weight=weight)
        path.unlink()
    pack(src, tmp_path / "out")
    batch = PackedSet(tmp_path / "out").gather(np.arange(12))
    assert batch["badpix"].sum((1, 2, 3)).tolist() == [1] * 12
    assert all(batch["badpix"][i, 0, i % 4, 0] for i in range(12))
    means = np.arange(1.0, 65).reshape(4, 2, 4, 2).mean((1, 3))
    np.testing.assert_allclose(batch["weight"][3, 0], means)


def test_bad_files_are_named_with_reasons_and_the_rest_is_packed(src: Path, tmp_path: Path) -> None:
    train = data_files.common(src) / "dataset/train"
    np.save(train / "no/100.npy", np.zeros((1, 8, 8)))
    np.save(train / "no/101.npy", np.full((1, 8, 8), np.nan))
    np.save(train / "no/102.npy", image(1, 1, 9, 8))
    (train / "no/103.npy").write_bytes((train / "no/1.npy").read_bytes()[:-5])
    (train / "no/104.npy").write_bytes(b"")
    (train / "no/105.npy").symlink_to("nowhere")
    (train / "no/106.npy").write_bytes((train / "no/2.npy").read_bytes())
    (train / "no/107.npy").write_bytes((src / "dataset/val/no/0.npy").read_bytes())
    (train / "sphere/100.npy").write_bytes((train / "vort/0.npy").read_bytes())
    manifest, _ = packed(src, tmp_path / "out", max_bad=0.2)
    report = json.loads((tmp_path / "out/report.json").read_text())
    reasons = {item["name"]: item["reason"] for item in report["quarantined"]}
    expected = {
        "no/100.npy": "constant",
        "no/101.npy": "NaN",
        "no/102.npy": "1x9x8",
        "no/103.npy": "cut short",
        "no/104.npy": "empty",
        "no/105.npy": "cannot be read",
        "no/106.npy": "copy of another file: dataset/train/no/2.npy",
        "no/107.npy": "copy of another file: dataset/val/no/0.npy",
        "sphere/100.npy": "another label: dataset/train/vort/0.npy",
        "vort/0.npy": "another label: dataset/train/sphere/100.npy",
    }
    assert len(reasons) == len(expected)
    for name, reason in expected.items():
        assert reason in reasons[f"dataset/train/{name}"]
    assert manifest.count == 72 - 1
    assert manifest.counts["test"]["no"] == 4  # the copy in train went, not the test image


def test_too_many_bad_files_stop_the_pack_with_the_reasons(src: Path, tmp_path: Path) -> None:
    data_files.common(src)
    for i in range(3):
        np.save(src / f"dataset/train/no/{i}.npy", np.zeros((1, 8, 8)))
    with pytest.raises(UserError, match=r"3 of 72 .*--max-bad 0\.01.*3 x it is constant"):
        pack(src, tmp_path / "out")
    assert [path.name for path in tmp_path.glob("*out*")] == ["out.report.json"]
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["files"] == 72
    named = [item["name"][-8:] for item in report["quarantined"]]
    assert named == [f"no/{i}.npy" for i in range(3)]
    assert packed(src, tmp_path / "out", max_bad=0.05)[0].count == 69
    assert not (tmp_path / "out.report.json").exists()


def test_a_report_of_a_failure_replaces_no_file_of_the_user(src: Path, tmp_path: Path) -> None:
    (src / "1.npy").write_bytes(b"junk")
    (tmp_path / "out.report.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match=r"none of the 1 files.*out\.report\.json"):
        packed(src, tmp_path / "out", max_bad=1.0)
    assert (tmp_path / "out.report.json").read_text() == '{"mine": 1}'


def test_reasons_are_printed_whole() -> None:
    report = Report(files=9)
    for i in range(2):
        report.refuse(f"cut{i}.npy", "it is cut: the header and the bytes do not agree")
        report.refuse(f"copy{i}.npy", f"it is a copy: {i}.npy")
    with pytest.raises(UserError) as caught:
        report.check(0.1)
    said = str(caught.value)
    assert "2 x it is cut: the header and the bytes do not agree (e.g. cut0.npy)" in said
    assert "2 x it is a copy (e.g. copy0.npy: it is a copy: 0.npy)" in said


@pytest.mark.parametrize("side", ["LR", "HR"])
def test_of_a_bad_pair_both_files_are_named_and_all_files_are_counted(
    src: Path, tmp_path: Path, side: str
) -> None:
    data_files.pairs(src)
    (src / f"Dataset/{side}/sample3.npy").write_bytes(b"junk")
    manifest, report = packed(src, tmp_path / "out", max_bad=0.1)
    assert {name[-14:] for name in report.quarantined} == {"LR/sample3.npy", "HR/sample3.npy"}
    assert report.files == 24 == 2 * manifest.count + len(report.quarantined)
    assert ("HR partner" in report.quarantined["Dataset/LR/sample3.npy"]) == (side == "HR")


def test_one_image_of_several_is_packed_by_name(src: Path, tmp_path: Path) -> None:
    for i in range(10):
        hdus = [fits.ImageHDU(image(i), name="VIS"), fits.ImageHDU(image(50 + i), name="NIR")]
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(src / f"{i}.fits")
    with pytest.raises(UserError, match=r"--hdu .*1 VIS \(8x8\), 2 NIR \(8x8\)"):
        pack(src, tmp_path / "out")
    packed(src, tmp_path / "out", choice=Choice("nir"))
    batch = PackedSet(tmp_path / "out").gather(np.arange(10))
    np.testing.assert_array_equal(batch["image"][0, 0], image(50).astype(np.float32))
    for path in src.iterdir():
        path.unlink()
    np.save(src / "1.npy", image(1))
    with pytest.raises(UserError, match="--hdu NIR"):
        packed(src, tmp_path / "out2", choice=Choice("NIR"))


def no_axions(src: Path) -> None:
    for path in (data_files.model_ii(src, n=4) / "Dataset/axion").iterdir():
        path.write_bytes(b"junk")


def odd_hr(*shape: int) -> Callable[[Path], None]:
    def make(src: Path) -> None:
        data_files.pairs(src)
        for i in range(12):
            np.save(src / f"Dataset/HR/sample{i}.npy", image(i, *shape))

    return make


@pytest.mark.parametrize(
    ("make", "options", "why"),
    [
        (no_axions, {"max_bad": 1.0}, "'axion'"),
        (odd_hr(1, 9, 8), {}, "1x4x4 -> 1x9x8"),
        (odd_hr(2, 8, 8), {}, "1x4x4 -> 2x8x8"),
        (odd_hr(1, 8, 12), {}, "1x4x4 -> 1x8x12"),
        (data_files.model_ii, {"dtype": "float16"}, "--dtype float32"),
    ],
)
def test_what_makes_no_set_is_refused(
    src: Path, tmp_path: Path, make: Callable[[Path], Any], options: dict[str, Any], why: str
) -> None:
    make(src)
    with pytest.raises(UserError, match=why):
        packed(src, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_splits_depend_on_content_and_not_on_dtype_or_file_names(src: Path, tmp_path: Path) -> None:
    def splits(name: str, **options: Any) -> dict[object, int]:
        manifest, _ = packed(src, tmp_path / name, **options)
        assert manifest.dtype == options.get("dtype", "float32")
        split = np.load(tmp_path / name / "split.npy").tolist()
        return {row["content"]: s for row, s in zip(rows(tmp_path / name), split, strict=True)}

    data_files.common(src)
    first = splits("one")
    assert splits("half", dtype="float16") == first
    for i, path in enumerate(sorted((src / "dataset/train/no").iterdir(), reverse=True)):
        path.rename(path.with_name(f"x{i}.npy"))
    assert splits("two") == first


def test_any_number_of_jobs_writes_the_same_bytes(src: Path, tmp_path: Path) -> None:
    data_files.common(src, train=40)
    np.save(src / "dataset/train/no/100.npy", np.zeros((1, 8, 8)))
    for jobs in (1, 3):
        pack(src, tmp_path / f"out{jobs}", PackOptions(max_bad=0.1), jobs=jobs)
    for path in (tmp_path / "out1").iterdir():
        assert path.read_bytes() == (tmp_path / "out3" / path.name).read_bytes(), path.name


def test_a_file_that_changes_meanwhile_is_an_error_and_leaves_nothing(
    src: Path, tmp_path: Path
) -> None:
    data_files.model_ii(src, n=5)

    def meddle(what: str, done: int, of: int) -> None:
        if what == "read" and done == of:
            save_axion(next((src / "Dataset/axion").iterdir()), image(12345), 1e-23)

    with pytest.raises(RunError, match="changed"):
        pack(src, tmp_path / "out", progress=meddle)
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


@pytest.mark.parametrize("inside", ["src/out", "src"])
def test_the_destination_is_not_inside_the_source(src: Path, tmp_path: Path, inside: str) -> None:
    data_files.common(src, train=3, val=1)
    with pytest.raises(UserError, match="src"):
        pack(src, tmp_path / inside)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    command.add_arguments(made)
    return made


def test_the_command_prints_a_summary(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(data_files.common(src) / "dataset/train/no/100.npy", np.zeros((1, 8, 8)))
    (tmp_path / ".out.0badcafe.partial").mkdir()
    words = [src, tmp_path / "out", "--labels", "vort,no,sphere", "--max-bad", "0.05"]
    words += ["--pixel-scale", "0.05", "--psf-fwhm", "0.2", "--jobs", "1"]
    assert command.run(parser().parse_args([str(word) for word in words])) == 0
    printed, said = capsys.readouterr()
    for expected in (
        "72 images of 1x8x8 float32",
        "vort",
        "quarantined 1",
        "__MACOSX",
        "found 73 files: 72 used, 1 quarantined",
    ):
        assert expected in printed
    assert ".out.0badcafe.partial" in said  # nobody can tell whose it is
    manifest = PackedSet(tmp_path / "out").manifest
    assert manifest.labels == ["vort", "no", "sphere"]
    assert (manifest.pixel_scale_arcsec, manifest.psf_fwhm_arcsec) == (0.05, 0.2)


@pytest.mark.parametrize("words", [["--max-bad", "2"], ["--pixel-scale", "-1"], ["--dtype", "int"]])
def test_the_command_refuses_impossible_options(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["src", "out", *words])
    assert caught.value.code == 2
