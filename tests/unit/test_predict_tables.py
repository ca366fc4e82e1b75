"""A classifier's table: rows, order, what is skipped, and how many images go together."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lensdist.data.config import PreprocessConfig
from lensdist.data.reading.readers import read
from lensdist.data.transforms import Preprocess
from lensdist.inference import predict as run
from lensdist.inference import tables
from lensdist.inference.predict import predict_files
from lensdist.utils.errors import UserError
from tests.unit.predict_samples import (
    BAD,
    Array,
    Classifier,
    SuperResolver,
    inputs,
    mixed,
    pixels,
    rows,
)

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return mixed(tmp_path / "in")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_a_classifier_s_table(
    folder: Path, tmp_path: Path, suffix: str, batch: int, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = tmp_path / "new" / f"table{suffix}"
    model = Classifier()
    given = inputs(folder, dest=dest)
    skipped = predict_files(model, given, dest, batch)
    assert len(given) == 19
    if suffix == ".csv":
        table = rows(dest)
        names = list(table[0])
    else:
        import pyarrow.parquet as pq

        whole = pq.read_table(dest)
        table, names = whole.to_pylist(), whole.column_names
    a, b = model.labels
    own = ["file", "label", f"prob_{a}", f"prob_{b}", f"logit_{a}", f"logit_{b}"]
    assert names == [*own, "unlike", "flag", "flagged_by", "changes"]
    # This model does not know what its training images were like.
    assert all(row["unlike"] in ("", None) and row["flag"] in ("", None) for row in table)
    # In the order of the inputs, one row for each that is not skipped.
    kept = [one for one in given if one not in skipped]
    assert [row["file"] for row in table] == [str(one.path) for one in kept]
    assert len(kept) == 7
    for one, row in zip(kept, table, strict=True):
        reading = read(one.path)
        good = None if reading.badpix is None else ~reading.badpix[None]
        alone = Classifier().predict(reading.image[None], good=good)
        logits = [float(row[f"logit_{c}"]) for c in model.labels]
        assert logits == [float(x) for x in alone["logits"][0]]  # every digit
        probs = [float(row[f"prob_{c}"]) for c in model.labels]
        np.testing.assert_allclose(probs, alone["probs"][0], rtol=1e-6)
        assert row["label"] == model.labels[int(np.argmax(probs))]
    assert {row["label"] for row in table} == set(model.labels)
    # Never more at a time than asked for, and never of different shapes.
    assert max(shape[0] for shape in model.calls) <= batch
    # What was skipped, on standard error and in a table beside.
    listed = rows(dest.with_suffix(".skipped.csv"))
    assert [row["file"] for row in listed] == [str(one.path) for one in given if one in skipped]
    lines = capsys.readouterr().err.splitlines()
    assert sorted(lines) == sorted(f"skipped {r['file']}: {r['reason']}" for r in listed)
    reasons = {Path(row["file"]).stem: row["reason"] for row in listed}
    assert reasons.keys() == {*BAD, "large", "bands", "large2", "large3"}
    for name, reason in BAD.items():
        assert reason in reasons[name]
    assert reasons["large"] == "images of shape (1, 1, 12, 10) do not fit"
    assert not [path for path in dest.parent.iterdir() if path.name.startswith(".")]


def test_bad_pixels_are_told_to_the_model(folder: Path, tmp_path: Path) -> None:
    dest = tmp_path / "t.csv"
    model = Classifier()
    predict_files(model, inputs(folder, dest=dest), dest)
    bad = {Path(r["file"]).name: float(r[f"logit_{model.labels[1]}"]) for r in rows(dest)}
    assert bad.pop("masked.npz") == (pixels(2) < 0.2).sum() > 0
    assert set(bad.values()) == {0.0}


class Measured(Classifier):
    """It also says of an image what scale none measures in it."""

    def __init__(self) -> None:
        super().__init__()
        limits = {"image_mean": (0.4, 0.7), "image_std": (0.0, 9.0), "image_max": (0.9, 1.0)}
        how = PreprocessConfig(scale="none")
        self.does.preprocess = Preprocess(how, [0.0], [1.0], limits=limits)

    def predict(self, x: Array, **more: Any) -> dict[str, Array]:
        found = self.does.preprocess.examine(torch.from_numpy(x))
        columns = {name: value.numpy() for name, value in found.columns.items()}
        return super().predict(x, **more) | columns | {"flag": found.flagged.numpy()}


def test_images_unlike_those_of_training_are_flagged_with_the_reason(tmp_path: Path) -> None:
    given = tmp_path / "in"
    given.mkdir()
    images = [pixels(1), 0.2 * pixels(2), pixels(3), pixels(4)]
    images[2][0, 0] = 5
    for i, image in enumerate(images):
        np.save(given / f"{i}.npy", image)
    dest, notes = tmp_path / "t.csv", list[str]()
    assert not predict_files(Measured(), inputs(given, dest=dest), dest, notes=notes)
    table = rows(dest)
    names = ["image_mean", "image_std", "image_max"]
    assert list(table[0])[-7:] == [*names, "unlike", "flag", "flagged_by", "changes"]
    assert [row["flag"] for row in table] == ["0", "1", "1", "0"]
    assert [row["flagged_by"] for row in table] == ["", "image_mean image_max", "image_max", ""]
    for image, row in zip(images, table, strict=True):
        wanted = [image.mean(), image.std(), image.max()]
        assert [float(row[name]) for name in names] == pytest.approx(wanted, rel=1e-5)
    assert [note[:13] for note in notes] == ["2 of 4 images"]


@pytest.mark.parametrize("n", [0, 6, 7])
def test_rows_of_parquet_are_written_once_each(tmp_path: Path, monkeypatch: Any, n: int) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setattr(tables, "_TOGETHER", 3)
    with tables.open_table(tmp_path / "t.parquet", {"x": float}) as add:
        for i in range(n):
            add(f"{i}.npy", [float(i)])
    found = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert found == [{"file": f"{i}.npy", "x": float(i)} for i in range(n)]
    groups = pq.ParquetFile(tmp_path / "t.parquet").metadata
    most = max((groups.row_group(i).num_rows for i in range(groups.num_row_groups)), default=0)
    assert most <= 3  # no more wait in memory


def test_images_of_one_shape_go_together(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(12):
        np.save(tmp_path / "in" / f"{i}.npy", pixels(i, 8 + i % 2, 8))
    model = SuperResolver()
    given = inputs(tmp_path / "in", dest=tmp_path / "out")
    assert not predict_files(model, given, tmp_path / "out", batch=8)
    assert sorted(model.calls) == [(2, 1, 8, 8), (2, 1, 9, 8), (4, 1, 8, 8), (4, 1, 9, 8)]


def test_large_images_are_not_all_in_memory(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(run, "_PIXELS", 1000)
    (tmp_path / "in").mkdir()
    for i in range(6):
        np.save(tmp_path / "in" / f"{i}.npy", pixels(i, 20, 20))
    np.save(tmp_path / "in" / "6.npy", pixels(6, 100, 100))
    model = SuperResolver()
    assert not predict_files(model, inputs(tmp_path / "in", dest=tmp_path / "o"), tmp_path / "o")
    assert [shape[0] for shape in model.calls] == [2, 2, 2, 1]


def test_one_image_that_does_not_suit_does_not_spoil_its_batch(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(5):
        np.save(tmp_path / "in" / f"{i}.npy", pixels(i) * (1e7 if i == 3 else 1))
    dest = tmp_path / "t.csv"
    skipped = predict_files(Classifier(), inputs(tmp_path / "in", dest=dest), dest)
    assert {one.name.name: why for one, why in skipped.items()} == {
        "3.npy": "an image is too bright"
    }
    assert [Path(row["file"]).name for row in rows(dest)] == ["0.npy", "1.npy", "2.npy", "4.npy"]


def test_an_answer_that_is_not_a_number_is_not_written(tmp_path: Path) -> None:
    class Broken(Classifier):
        def predict(self, x: Array, **more: Any) -> dict[str, Array]:
            found = super().predict(x, **more)
            found["probs"][0] = np.nan
            return found

    np.save(tmp_path / "1.npy", pixels(1))
    np.save(tmp_path / "2.npy", pixels(2))
    dest = tmp_path / "t.csv"
    skipped = predict_files(Broken(), inputs(tmp_path, dest=dest), dest)
    assert ["not finite" in why for why in skipped.values()] == [True]
    assert [Path(row["file"]).name for row in rows(dest)] == ["2.npy"]


def test_an_image_of_which_nothing_can_be_said_has_its_row(tmp_path: Path) -> None:
    class Knowing(Classifier):
        likeness = object()

        def predict(self, x: Array, **more: Any) -> dict[str, Array]:
            odd = np.array([True, False])
            return {**super().predict(x, **more), "unlike": np.where(odd, np.inf, 0.5), "flag": odd}

    for name in ("1.npy", "2.npy"):
        np.save(tmp_path / name, pixels(1))
    dest = tmp_path / "t.csv"
    assert not predict_files(Knowing(), inputs(tmp_path, dest=dest), dest)
    assert [(row["unlike"], row["flag"]) for row in rows(dest)] == [("inf", "1"), ("0.5", "0")]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_name_that_is_not_text(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "in").mkdir()
    odd = os.fsdecode(b'\xff,"\n\x1b[2J.npy')
    np.save(tmp_path / "in" / "a.npy", pixels(1))
    (tmp_path / "in" / "a.npy").rename(tmp_path / "in" / odd)
    dest = tmp_path / f"t{suffix}"
    assert not predict_files(Classifier(), inputs(tmp_path / "in", dest=dest), dest)
    if suffix == ".csv":
        (name,) = (row["file"] for row in rows(dest))
    else:
        import pyarrow.parquet as pq

        (name,) = pq.read_table(dest)["file"].to_pylist()
    assert name == f'{tmp_path}/in/\\udcff,"\n\x1b[2J.npy'


def test_parquet_without_pyarrow_is_refused_in_words(tmp_path: Path, monkeypatch: Any) -> None:
    np.save(tmp_path / "1.npy", pixels(1))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    dest = tmp_path / "new" / "t.parquet"
    with pytest.raises(UserError, match=re.escape("pip install 'lensdist[parquet]'")):
        predict_files(Classifier(), inputs(tmp_path, dest=dest), dest)
    assert not dest.parent.exists()
