"""Nothing of anybody's is overwritten, and what was not finished is not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lensdist.inference import images
from lensdist.inference.predict import predict_files
from lensdist.utils.errors import RunError, UserError
from tests.unit.predict_samples import (
    Array,
    Classifier,
    SuperResolver,
    inputs,
    means,
    pixels,
)

pytestmark = pytest.mark.unit


def refused(model: Any, dest: Path, *words: object, match: str, **more: Any) -> None:
    """The command is refused before the model is asked, and nothing is changed anywhere."""

    def everything() -> dict[Path, bytes | None]:
        found = sorted(dest.parent.rglob("*"))
        return {path: path.read_bytes() if path.is_file() else None for path in found}

    before = everything()
    with pytest.raises(UserError, match=match):
        predict_files(model, inputs(*words, dest=dest), dest, **more)
    assert not model.calls
    assert everything() == before


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.skipped.csv"])
def test_a_table_that_exists_is_kept_unless_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "1.npy", pixels(1))
    old = tmp_path / name
    old.write_text("precious")
    dest = tmp_path / ("t.parquet" if name == "t.parquet" else "t.csv")
    refused(Classifier(), dest, tmp_path / "in", match=rf"{name} exists; .* give --overwrite")
    given = inputs(tmp_path / "in", dest=dest)
    assert not predict_files(Classifier(), given, dest, overwrite=True)
    # A list of what an earlier run skipped would now be wrong.
    assert {path.name for path in tmp_path.iterdir()} == {"in", dest.name}
    assert b"precious" not in dest.read_bytes()


@pytest.mark.parametrize("name", ["1.npy", "1.sigma.npy", "skipped.csv"])
def test_images_that_exist_are_kept_unless_told(tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "1.npy", pixels(1))
    dest = tmp_path / "out"
    dest.mkdir()
    (dest / name).write_text("precious")
    refused(SuperResolver(), dest, tmp_path / "1.npy", match=f"out/{name} exists")
    given = inputs(tmp_path / "1.npy", dest=dest)
    assert not predict_files(SuperResolver(), given, dest, overwrite=True)
    assert [path.name for path in dest.iterdir()] == ["1.npy"]


@pytest.mark.parametrize("how", ["same folder", "link to the folder", "hard link", "link to it"])
def test_an_input_is_never_overwritten(tmp_path: Path, how: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    np.save(source / "1.npy", pixels(1))
    np.save(source / "2.npy", pixels(2))
    dest = tmp_path / "out"
    if how == "same folder":
        dest = source
    elif how == "link to the folder":
        dest.symlink_to(source)
    else:
        dest.mkdir()
        link = os.link if how == "hard link" else os.symlink
        link(source / "2.npy", dest / "2.npy")
    match = "would replace the input"
    refused(SuperResolver(), dest, source, match=match, overwrite=True)


def test_a_list_of_skipped_files_replaces_no_input(tmp_path: Path) -> None:
    dest = tmp_path / "t.csv"
    np.save(tmp_path / "1.npy", pixels(1))
    os.link(tmp_path / "1.npy", tmp_path / "t.skipped.csv")
    match = "t.skipped.csv would replace the input"
    refused(Classifier(), dest, tmp_path / "1.npy", match=match, overwrite=True)


COLLISIONS = {
    "equal names": (["a/1.npy", "b/1.npy"], ["a", "b"], None, "a/1.npy and .*b/1.npy would both"),
    "equal stems": (["a/1.npy", "a/1.npz"], ["a"], None, "1.npy and .*1.npz would both"),
    "one form": (["a/1.npy", "a/1.fits"], ["a"], "npy", "1.fits and .*1.npy would both"),
    "sigma": (["a/1.npy", "a/1.sigma.npy"], ["a"], None, "1.npy and .*1.sigma.npy would both"),
}


@pytest.mark.parametrize("name", COLLISIONS)
def test_two_images_never_share_a_file(tmp_path: Path, name: str) -> None:
    files, words, form, match = COLLISIONS[name]
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    given = [tmp_path / word for word in words]
    refused(SuperResolver(), tmp_path / "out", *given, match=match, form=form)


def test_equal_names_in_one_folder_s_folders_do_not_collide(tmp_path: Path) -> None:
    for i, name in enumerate(("a", "b")):
        (tmp_path / "in" / name).mkdir(parents=True)
        np.save(tmp_path / "in" / name / "1.npy", pixels(i))
    dest = tmp_path / "out"
    for word in (tmp_path / "in", f"{tmp_path}/in/*/1.npy"):
        given = inputs(word, dest=dest)
        assert not predict_files(SuperResolver(), given, dest, overwrite=True)
        for i, name in enumerate(("a", "b")):
            np.testing.assert_allclose(
                means(np.load(dest / name / "1.npy"), 2), pixels(i), atol=1e-6
            )


DESTINATIONS = {
    "no table": (Classifier, "out", None, "ends in .csv or .parquet"),
    "a table, in another form": (Classifier, "out.tsv", None, "ends in .csv or .parquet"),
    "a folder called so": (Classifier, "folder.csv", None, "folder.csv is a folder"),
    "a format for a table": (Classifier, "t.csv", "fits", "--format is for models that make"),
    "a table for images": (
        SuperResolver,
        "t.csv",
        None,
        "writes images; give a folder",
    ),
    "a file for a folder": (SuperResolver, "file", None, "writes images; give a folder"),
    "below a file": (SuperResolver, "file/out", None, "cannot write"),
    "a table below a file": (Classifier, "file/t.csv", None, "cannot write"),
}


@pytest.mark.parametrize("name", DESTINATIONS)
def test_destinations_that_do_not_suit(tmp_path: Path, name: str) -> None:
    model, dest, form, match = DESTINATIONS[name]
    np.save(tmp_path / "1.npy", pixels(1))
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    refused(model(), tmp_path / dest, tmp_path / "1.npy", match=match, form=form, overwrite=True)


def test_a_table_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    class Stopped(Classifier):
        def predict(self, x: Array, **more: Any) -> dict[str, Array]:
            if self.calls:
                raise KeyboardInterrupt
            return super().predict(x, **more)

    for i in range(4):
        np.save(tmp_path / f"{i}.npy", pixels(i))
    dest = tmp_path / "t.csv"
    dest.write_text("old")
    given = inputs(tmp_path, dest=dest)
    with pytest.raises(KeyboardInterrupt):
        predict_files(Stopped(), given, dest, batch=2, overwrite=True)
    assert dest.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 5


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: Any) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    np.save(tmp_path / "1.npy", pixels(1))
    monkeypatch.setattr(images, "write_atomic", full)
    dest = tmp_path / "out"
    with pytest.raises(RunError, match=r"cannot write .*out: No space left on device"):
        predict_files(SuperResolver(), inputs(tmp_path, dest=dest), dest)
