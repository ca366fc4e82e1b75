"""`lensdist predict` as a user types it, with models as `lensdist train` leaves them."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import lensdist
from lensdist import train
from lensdist.cli import main
from lensdist.data.reading.readers import read
from tests.conftest import forked, start

pytestmark = [pytest.mark.unit, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of three tasks, hardly trained, and a folder of lenses with two bad files."""
    root = tmp_path_factory.mktemp("work")
    for task in ("finetune", "mae", "sr"):
        words = [f"--config=configs/{task}/debug.yaml", f"run.dir={root / task}"]
        words += ["data.n_per_class=20", "train.max_steps=4", "train.epochs=1"]
        words += ["optim.schedule.warmup_steps=0"]
        assert train.main(words) == 0
    raw = root / "lenses"
    words = ["simulate", "--family", "model_ii", "--n-per-class", "3", "--layout", "raw"]
    assert main([*words, str(raw)]) == 0
    (raw / "axion_broken.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'")
    image = np.load(sorted(raw.rglob("no_sub/*.npy"))[0]).reshape(64, 64)
    hdu = fits.PrimaryHDU(image.astype(np.float32))
    hdu.header.update({
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 52.1, "CRVAL2": -28.2,
        "CRPIX1": 32.5, "CRPIX2": 32.5, "CDELT1": -2.8e-5, "CDELT2": 2.8e-5, "OBJECT": "lens",
    })  # fmt: skip
    hdu.writeto(raw / "sky.fits")
    (raw / "cut.fits").write_bytes((raw / "sky.fits").read_bytes()[:9000])
    return root


def predict(*words: object, code: int = 0, typed: bool = False) -> subprocess.CompletedProcess[str]:
    """Typed: in a new process, with standard input closed, as under some job schedulers."""
    command = ["lensdist", "predict", *map(str, words), "--device", "cpu"]
    closed = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-m"]
    done = start([*closed, *command]) if typed else forked(*command)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_classes_of_a_folder(work: Path) -> None:
    dest = work / "classes.csv"
    words = (work / "finetune", work / "lenses", "--out", dest, "--batch", 4)
    done = predict(*words, code=1, typed=True)
    assert done.stdout.splitlines()[0] == f"predicted 10 of 12 files, 2 skipped: {dest}"
    with dest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    model = lensdist.load(work / "finetune")
    for row in rows:
        path = Path(row["file"])
        if row["flag"] == "1":
            assert row["label"] == "?"
        elif path.suffix == ".npy":
            (probs,) = model.predict(read(path).image[None])["probs"]
            found = [float(row[f"prob_{label}"]) for label in model.labels]
            np.testing.assert_allclose(found, probs, atol=1e-5)
            assert row["label"] == model.labels[int(probs.argmax())]
    listed = (work / "classes.skipped.csv").read_text().splitlines()
    assert [Path(line.split(",")[0]).name for line in listed[1:]] == [
        "axion_broken.npy",
        "cut.fits",
    ]
    assert all(f"skipped {line.split(',')[0]}: " in done.stderr for line in listed[1:])
    done = predict(work / "finetune", work / "lenses", "--out", dest, code=2)
    assert "exists; write elsewhere, or give --overwrite" in done.stderr


def test_images_of_quoted_patterns(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pattern, dest = f"{work}/lenses/**/[ns]*_*.npy", work / "drawn"
    words = ["predict", work / "mae", pattern, "--out", dest, "--format", "fits"]
    assert main([str(word) for word in words]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"predicted 3 of 3 files, 0 skipped: {dest}"
    made = [path for path in dest.rglob("*") if path.is_file()]
    assert len(made) == 3
    assert all(fits.getdata(path).shape == (64, 64) for path in made)


def test_finer_pixels_on_the_same_sky(work: Path) -> None:
    source = work / "lenses" / "sky.fits"
    predict(work / "sr", source, "--out", work / "finer")
    model = lensdist.load(work / "sr")
    factor = model.description["model"]["factor"]
    with fits.open(work / "finer" / "sky.fits") as hdus:
        image, head = hdus[0].data, hdus[0].header
        assert image.shape == (64 * factor, 64 * factor)
        assert head["OBJECT"] == "lens"
        (whole,) = model.predict(fits.getdata(source)[None].astype(np.float32))["image"]
        np.testing.assert_allclose(image, whole[0], atol=1e-5)
        if model.description["model"]["sigma"]:
            assert hdus["SIGMA"].data.min() > 0
        assert f"{factor} x {factor} averages to the input pixel" in " ".join(head["HISTORY"])
        blocks = image.reshape(64, factor, 64, factor).mean((1, 3))
        np.testing.assert_allclose(blocks, fits.getdata(source), atol=1e-4 * image.max())
        old = WCS(fits.getheader(source)).all_pix2world([[0.5, 0.5], [64.5, 64.5]], 1)
        end = 64 * factor + 0.5
        np.testing.assert_allclose(WCS(head).all_pix2world([[0.5, 0.5], [end, end]], 1), old)
