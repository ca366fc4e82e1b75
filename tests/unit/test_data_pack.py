"""`lensdist pack`: folders become sets; what is bad is named and does not stop the rest."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from lensdist.commands import pack as command
from lensdist.data.dataset import PackedSet
from lensdist.data.packing.pack import pack
from lensdist.data.packing.report import Report
from lensdist.data.reading.object_arrays import save_axion
from lensdist.errors import RunError, UserError
from tests.unit import data_files
from tests.unit.data_files import image


def rows(dest: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (dest / "files.jsonl").read_text().splitlines()]


def quarantined(dest: Path) -> dict[str, str]:
    report = json.loads((dest / "report.json").read_text())
    return {item["name"]: item["reason"] for item in report["quarantined"]}


def test_common_task_keeps_val_as_test_and_draws_validation_from_train(tmp_path: Path) -> None:
    manifest, report = pack(data_files.common(tmp_path / "src"), tmp_path / "out")
    assert manifest.counts == {
        "train": {"no": 18, "sphere": 18, "vort": 18},
        "val": {"no": 2, "sphere": 2, "vort": 2},
        "test": {"no": 4, "sphere": 4, "vort": 4},
    }
    assert report.skipped == {"__MACOSX": 72}
    names = [str(row["name"]) for row in rows(tmp_path / "out")]
    packed = PackedSet(tmp_path / "out")
    assert all("/val/" in names[i] for i in packed.indices("test"))
    assert all("/train/" in names[i] for i in packed.indices("val"))
    batch = packed.gather(np.arange(len(packed)))
    for name, pixels, label in zip(names, batch["image"], batch["label"], strict=True):
        expected = np.load(tmp_path / "src" / name).astype(np.float32)
        np.testing.assert_array_equal(pixels.numpy(), expected)
        assert f"/{manifest.labels[label]}/" in name


def test_model_ii_keeps_the_axion_masses(tmp_path: Path) -> None:
    manifest, _ = pack(data_files.model_ii(tmp_path / "src"), tmp_path / "out")
    assert manifest.labels == ["no_sub", "cdm", "axion"]
    assert manifest.counts["test"] == {"no_sub": 2, "cdm": 2, "axion": 2}
    batch = PackedSet(tmp_path / "out").gather(np.arange(60))
    assert batch["mass"][:40].isnan().all()
    np.testing.assert_allclose(batch["mass"][40:], [10.0 ** -(23 + i / 100) for i in range(20)])
    assert batch["image"].max() > 1  # raw units stay


def test_pairs_stay_paired(tmp_path: Path) -> None:
    manifest, _ = pack(data_files.pairs(tmp_path / "src"), tmp_path / "out")
    assert (manifest.kind, manifest.image_shape, manifest.target_shape) == (
        "pairs",
        (1, 4, 4),
        (1, 8, 8),
    )
    batch = PackedSet(tmp_path / "out").gather(np.arange(12))
    means = batch["target"].reshape(12, 1, 4, 2, 4, 2).mean((3, 5))
    np.testing.assert_allclose(means, batch["image"], atol=1e-6)
    assert rows(tmp_path / "out")[10]["name"] == "Dataset/LR/sample10.npy"


def test_unlabelled_fits_stamps_bring_scale_and_zero_point(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for i in range(20):
        hdu = fits.PrimaryHDU(image(i))
        hdu.header["CTYPE1"], hdu.header["CTYPE2"] = "RA---TAN", "DEC--TAN"
        hdu.header["CDELT1"], hdu.header["CDELT2"] = -0.1 / 3600, 0.1 / 3600
        hdu.header["ZP"] = 25.0
        hdu.writeto(tmp_path / "src" / f"{i}.fits")
    manifest, _ = pack(tmp_path / "src", tmp_path / "out")
    assert manifest.kind == "images"
    assert manifest.pixel_scale_arcsec == pytest.approx(0.1)
    assert manifest.zero_point_mag == 25.0
    assert manifest.counts["train"] == {"unlabelled": 16}
    said, _ = pack(tmp_path / "src", tmp_path / "said", pixel_scale_arcsec=0.2, zero_point_mag=1.0)
    assert (said.pixel_scale_arcsec, said.zero_point_mag) == (0.2, 1.0)
    np.save(tmp_path / "src" / "21.npy", image(99))
    mixed, report = pack(tmp_path / "src", tmp_path / "mixed")
    assert mixed.pixel_scale_arcsec is None
    assert any("pixel scale" in note for note in report.notes)


def test_masks_and_weights_are_packed_for_all_once_any_file_has_them(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for i in range(12):
        np.save(tmp_path / "src" / f"{i}.npy", image(i))
    bad = np.eye(8, dtype=bool)
    np.savez(
        tmp_path / "src" / "5.npz",
        image=np.where(bad, np.nan, image(50)),
        badpix=bad,
        weight=np.full((8, 8), 2.0),
    )
    pack(tmp_path / "src", tmp_path / "out")
    packed = PackedSet(tmp_path / "out")
    at = [row["name"] for row in rows(tmp_path / "out")].index("5.npz")
    batch = packed.gather(np.arange(13))
    np.testing.assert_array_equal(batch["badpix"][at, 0], bad)
    assert batch["badpix"].sum() == 8
    assert (batch["image"][at, 0].numpy()[bad] == 0).all()
    assert (batch["weight"][at] == 2).all()
    assert batch["weight"].sum() == 64 * (12 + 2)


def test_bad_files_are_named_with_reasons_and_the_rest_is_packed(tmp_path: Path) -> None:
    src = data_files.common(tmp_path / "src")
    train = src / "dataset/train"
    np.save(train / "no/100.npy", np.zeros((1, 8, 8)))
    np.save(train / "no/101.npy", np.full((1, 8, 8), np.nan))
    np.save(train / "no/102.npy", image(1, 1, 9, 8))
    (train / "no/103.npy").write_bytes((train / "no/1.npy").read_bytes()[:-5])
    (train / "no/104.npy").write_bytes(b"")
    (train / "no/105.npy").symlink_to("nowhere")
    (train / "no/106.npy").write_bytes((train / "no/2.npy").read_bytes())
    (train / "no/107.npy").write_bytes((src / "dataset/val/no/0.npy").read_bytes())
    (train / "sphere/100.npy").write_bytes((train / "vort/0.npy").read_bytes())
    manifest, _ = pack(src, tmp_path / "out", max_bad=0.2)
    reasons = quarantined(tmp_path / "out")
    expected = {
        "no/100.npy": "constant",
        "no/101.npy": "NaN",
        "no/102.npy": "shape 1x9x8",
        "no/103.npy": "cut short",
        "no/104.npy": "empty",
        "no/105.npy": "cannot be read",
        "no/106.npy": "exact copy of another file: dataset/train/no/2.npy",
        "no/107.npy": "exact copy of another file: dataset/val/no/0.npy",
        "sphere/100.npy": "another label: dataset/train/vort/0.npy",
        "vort/0.npy": "another label: dataset/train/sphere/100.npy",
    }
    assert len(reasons) == len(expected)
    for name, reason in expected.items():
        assert reason in reasons[f"dataset/train/{name}"]
    assert manifest.count == 72 - 1
    assert manifest.counts["test"]["no"] == 4  # the copy in train went, not the test image


def test_too_many_bad_files_stop_the_pack_with_the_reasons(tmp_path: Path) -> None:
    src = data_files.common(tmp_path / "src")
    for i in range(3):
        np.save(src / f"dataset/train/no/{i}.npy", np.zeros((1, 8, 8)))
    with pytest.raises(UserError, match=r"3 of 72 .*--max-bad 0\.01.*3 x it is constant"):
        pack(src, tmp_path / "out")
    assert [path.name for path in tmp_path.glob("*out*")] == ["out.report.json"]
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["files"] == 72
    assert [item["name"][-8:] for item in report["quarantined"]] == [
        f"no/{i}.npy" for i in range(3)
    ]
    assert pack(src, tmp_path / "out", max_bad=0.05)[0].count == 69
    assert not (tmp_path / "out.report.json").exists()


def test_a_report_of_a_failure_replaces_no_file_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/1.npy").write_bytes(b"junk")
    (tmp_path / "out.report.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match=r"no report: .*out\.report\.json is another file"):
        pack(tmp_path / "src", tmp_path / "out")
    assert (tmp_path / "out.report.json").read_text() == '{"mine": 1}'


def test_reasons_are_printed_whole() -> None:
    report = Report(files=9)
    for i in range(2):
        report.refuse(f"cut{i}.npy", "it is cut short: the header and the bytes do not agree")
        report.refuse(f"copy{i}.npy", f"it is an exact copy of another file: {i}.npy")
    with pytest.raises(UserError) as caught:
        report.check(0.1)
    said = str(caught.value)
    assert "2 x it is cut short: the header and the bytes do not agree (e.g. cut0.npy)" in said
    whole = "it is an exact copy of another file: 0.npy"
    assert f"2 x it is an exact copy of another file (e.g. copy0.npy: {whole})" in said


def test_of_a_bad_pair_both_files_are_named_and_all_files_are_counted(tmp_path: Path) -> None:
    src = data_files.pairs(tmp_path / "src")
    (src / "Dataset/LR/sample3.npy").write_bytes(b"junk")
    manifest, report = pack(src, tmp_path / "out", max_bad=0.1)
    assert {name[-14:] for name in report.quarantined} == {"LR/sample3.npy", "HR/sample3.npy"}
    assert report.files == 24 == 2 * manifest.count + len(report.quarantined)


def test_one_image_of_several_is_packed_by_name(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for i in range(10):
        hdus = [fits.ImageHDU(image(i), name="VIS"), fits.ImageHDU(image(50 + i), name="NIR")]
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "src" / f"{i}.fits")
    with pytest.raises(UserError, match=r"choose one with --hdu .*1 VIS \(8x8\), 2 NIR \(8x8\)"):
        pack(tmp_path / "src", tmp_path / "out")
    pack(tmp_path / "src", tmp_path / "out", hdu="nir")
    batch = PackedSet(tmp_path / "out").gather(np.arange(10))
    np.testing.assert_array_equal(batch["image"][0, 0], image(50).astype(np.float32))
    for path in (tmp_path / "src").iterdir():
        path.unlink()
    np.save(tmp_path / "src" / "1.npy", image(1))
    with pytest.raises(UserError, match="--hdu NIR chooses an image of FITS"):
        pack(tmp_path / "src", tmp_path / "out2", hdu="NIR")


def test_a_class_with_nothing_usable_stops_the_pack(tmp_path: Path) -> None:
    src = data_files.model_ii(tmp_path / "src", n=4)
    for path in (src / "Dataset/axion").iterdir():
        path.write_bytes(b"junk")
    with pytest.raises(UserError, match="class 'axion'"):
        pack(src, tmp_path / "out", max_bad=1.0)


def test_nothing_readable_stops_the_pack(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/1.npy").write_bytes(b"junk")
    with pytest.raises(UserError, match="none of the 1 files"):
        pack(tmp_path / "src", tmp_path / "out", max_bad=1.0)


def test_a_bad_partner_takes_its_pair_along(tmp_path: Path) -> None:
    src = data_files.pairs(tmp_path / "src")
    (src / "Dataset/HR/sample3.npy").write_bytes(b"junk")
    manifest, _ = pack(src, tmp_path / "out", max_bad=0.1)
    assert manifest.count == 11
    assert "HR partner" in quarantined(tmp_path / "out")["Dataset/LR/sample3.npy"]


def test_hr_must_be_a_whole_multiple_of_lr(tmp_path: Path) -> None:
    src = data_files.pairs(tmp_path / "src")
    for i in range(12):
        np.save(src / f"Dataset/HR/sample{i}.npy", image(i, 1, 9, 8))
    with pytest.raises(UserError, match="whole multiple"):
        pack(src, tmp_path / "out")


def test_float16_is_for_scaled_images_only(tmp_path: Path) -> None:
    scaled = pack(data_files.common(tmp_path / "a"), tmp_path / "out", dtype="float16")[0]
    assert scaled.dtype == "float16"
    with pytest.raises(UserError, match="--dtype float32"):
        pack(data_files.model_ii(tmp_path / "b"), tmp_path / "out2", dtype="float16")
    same = pack(tmp_path / "a", tmp_path / "out32")[0]
    splits = [np.load(tmp_path / out / "split.npy") for out in ("out", "out32")]
    np.testing.assert_array_equal(*splits)
    assert same.counts == scaled.counts


def test_splits_do_not_depend_on_file_names(tmp_path: Path) -> None:
    src = data_files.model_ii(tmp_path / "src")
    pack(src, tmp_path / "one")
    for i, path in enumerate(sorted((src / "Dataset/cdm").iterdir(), reverse=True)):
        path.rename(path.with_name(f"x{i}.npy"))
    pack(src, tmp_path / "two")
    tables = []
    for out in ("one", "two"):
        split = np.load(tmp_path / out / "split.npy").tolist()
        tables.append({r["content"]: s for r, s in zip(rows(tmp_path / out), split, strict=True)})
    assert tables[0] == tables[1]


def test_any_number_of_jobs_writes_the_same_bytes(tmp_path: Path) -> None:
    src = data_files.common(tmp_path / "src", train=40)
    np.save(src / "dataset/train/no/100.npy", np.zeros((1, 8, 8)))
    for jobs in (1, 3):
        pack(src, tmp_path / f"out{jobs}", jobs=jobs, max_bad=0.1)
    for path in (tmp_path / "out1").iterdir():
        assert path.read_bytes() == (tmp_path / "out3" / path.name).read_bytes(), path.name


def test_a_file_that_changes_meanwhile_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    src = data_files.model_ii(tmp_path / "src", n=5)

    def meddle(what: str, done: int, of: int) -> None:
        if what == "read" and done == of:
            save_axion(next((src / "Dataset/axion").iterdir()), image(12345), 1e-23)

    with pytest.raises(RunError, match="changed while"):
        pack(src, tmp_path / "out", progress=meddle)
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


@pytest.mark.parametrize("inside", ["src/out", "src"])
def test_the_destination_is_not_inside_the_source(tmp_path: Path, inside: str) -> None:
    data_files.common(tmp_path / "src", train=3, val=1)
    with pytest.raises(UserError):
        pack(tmp_path / "src", tmp_path / inside)


def test_the_command_prints_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = data_files.common(tmp_path / "src")
    np.save(src / "dataset/train/no/100.npy", np.zeros((1, 8, 8)))
    (tmp_path / ".out.0badcafe.partial").mkdir()
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = [src, tmp_path / "out", "--labels", "vort,no,sphere", "--max-bad", "0.05"]
    words += ["--pixel-scale", "0.05", "--psf-fwhm", "0.2", "--jobs", "1"]
    assert command.run(parser.parse_args([str(word) for word in words])) == 0
    printed, said = capsys.readouterr()
    for expected in (
        "72 images of 1x8x8 float32",
        "vort",
        "quarantined 1",
        "__MACOSX",
        "found 73 files: 72 packed, 1 quarantined",
    ):
        assert expected in printed
    assert ".out.0badcafe.partial" in said  # nobody can tell whose it is
    manifest = PackedSet(tmp_path / "out").manifest
    assert manifest.labels == ["vort", "no", "sphere"]
    assert (manifest.pixel_scale_arcsec, manifest.psf_fwhm_arcsec) == (0.05, 0.2)


@pytest.mark.parametrize("words", [["--max-bad", "2"], ["--pixel-scale", "-1"], ["--dtype", "int"]])
def test_the_command_refuses_impossible_options(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["src", "out", *words])
    assert caught.value.code == 2


def test_packing_imports_no_torch() -> None:
    code = "import sys, lensdist.data.packing.pack, lensdist.commands.pack; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
