"""The command's words, what it says and how it ends."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

import lensdist
from lensdist.cli import main
from lensdist.inference.predict import predict_files
from tests.unit.exported import write_model
from tests.unit.predict_samples import (
    Classifier,
    inputs,
    pixels,
    rows,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batch", "0"], "--batch must be 1 or more"),
        (["--format", "fits"], "--format is for models that make images"),
        (["nothing.npy"], "nothing.npy does not exist"),
    ],
)
def test_bad_words_end_with_2(
    tmp_path: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path)
    np.save(tmp_path / "1.npy", pixels(1, 64, 64))
    dest = tmp_path / "t.csv"
    base = ["predict", str(tmp_path), str(tmp_path / "1.npy")]
    extra = words if words[0].startswith("--") else []
    base += [] if extra else words
    assert main([*base, "--out", str(dest), *extra]) == 2
    assert sentence in capsys.readouterr().err
    assert not dest.exists()


def test_the_command_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path)
    (tmp_path / "in").mkdir()
    for i in range(3):
        np.save(tmp_path / "in" / f"{i}.npy", pixels(i, 64, 64))
    dest = tmp_path / "t.csv"
    words = ["predict", str(tmp_path), str(tmp_path / "in"), "--out", str(dest), "--device", "cpu"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"predicted 3 of 3 files, 0 skipped: {dest}"
    np.save(tmp_path / "in" / "2.npy", np.full((64, 64), np.nan))
    assert main([*words, "--overwrite"]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == f"predicted 2 of 3 files, 1 skipped: {dest}"
    (line,) = said.err.splitlines()
    assert f" WARNING skipped {tmp_path}/in/2.npy: " in line
    expected = lensdist.load(tmp_path).predict(np.stack([pixels(i, 64, 64) for i in range(2)]))
    found = [[float(row[f"prob_{c}"]) for c in ("no_sub", "cdm", "axion")] for row in rows(dest)]
    np.testing.assert_allclose(found, expected["probs"], atol=1e-6)


def test_all_that_a_pattern_matches_is_used_or_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    hdus = [fits.ImageHDU(pixels(i, 64, 64), name=name) for i, name in enumerate(("VIS", "NIR"))]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "in" / "a.fits")
    fits.HDUList([fits.PrimaryHDU(), hdus[0]]).writeto(tmp_path / "in" / "b.fits.gz")
    tiles = fits.CompImageHDU(pixels(2, 64, 64), name="VIS")
    fits.HDUList([fits.PrimaryHDU(), tiles]).writeto(tmp_path / "in" / "c.fits.fz")
    (tmp_path / "in" / "note.txt").write_text("x")
    (tmp_path / "in" / "deep" / "d.txt").write_text("x")
    dest = tmp_path / "t.csv"
    words = ["predict", str(tmp_path), f"{tmp_path}/in/*", "--out", str(dest), "--device", "cpu"]
    assert main(words) == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == f"predicted 2 of 4 files, 2 skipped: {dest}"
    assert said.out.splitlines()[-1] == "passed over 1: other file type (.txt), e.g. d.txt"
    assert "in/note.txt: it is not an image file: names end in .npy" in said.err
    assert "in/a.fits: it has 2 images; choose with --bands, from VIS,NIR, or --hdu" in said.err
    assert [Path(row["file"]).name for row in rows(dest)] == ["b.fits.gz", "c.fits.fz"]
    assert main([*words, "--hdu", "VIS", "--overwrite"]) == 1
    assert "predicted 3 of 4 files" in capsys.readouterr().out
    listed = rows(tmp_path / "t.skipped.csv")
    assert [Path(row["file"]).name for row in listed] == ["note.txt"]


def test_progress_is_shown_to_people_only(tmp_path: Path, monkeypatch: Any) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    np.save(tmp_path / "1.npy", pixels(1))
    for stream, text in ((Terminal(), "1 of 1 files\r"), (io.StringIO(), "")):
        monkeypatch.setattr(sys, "stderr", stream)
        dest = tmp_path / "t.csv"
        predict_files(Classifier(), inputs(tmp_path / "1.npy", dest=dest), dest, overwrite=True)
        assert stream.getvalue() == text
