"""`lensdist simulate`: both layouts read back, the same set again, and what is refused."""

import argparse
import re

import numpy as np
import pytest
import torch

from lensdist.commands import simulate
from lensdist.data.reading.object_arrays import parse_axion
from lensdist.sim import render
from lensdist.utils.errors import RunError, UserError


def command(*words):
    parser = argparse.ArgumentParser()
    simulate.add_arguments(parser)
    return simulate.run(parser.parse_args([str(w) for w in words]))


def make(dest, family, layout, *more, n=5):
    command("--family", family, "--n-per-class", n, "--layout", layout, *more, dest)
    return dest


def axion(path):
    """Image and mass of an axion file, through the importer that executes nothing."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        return parse_axion(file.read())


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("family", "n_pix"), [("model_i", 150), ("model_ii", 64)])
def test_raw_models(tmp_path, family, n_pix):
    dest = make(tmp_path / "set", family, "raw", n=3)
    assert sorted(p.name for p in dest.iterdir()) == ["axion", "cdm", "no_sub"]
    for path in dest.rglob("*.npy"):
        name = path.parent.name
        number = re.fullmatch(rf"{name}_sim_(\d+)\.npy", path.name)
        assert number
        assert int(number[1]) < 2**128
        if name == "axion":
            with pytest.raises(ValueError, match="allow_pickle"):
                np.load(path, allow_pickle=False)
            image, mass = axion(path)
            assert 1e-24 < mass < 1e-22
        else:
            image = np.load(path, allow_pickle=False)
        assert image.shape == (n_pix, n_pix)
        assert image.dtype == np.float64
        assert image.max() > 1
    assert len(list(dest.rglob("*.npy"))) == 9


def test_raw_common(tmp_path):
    dest = make(tmp_path / "set", "common", "raw")
    for name in ("no", "sphere", "vort"):
        assert sorted(p.name for p in (dest / "train" / name).iterdir()) == [
            f"{i}.npy" for i in (1, 2, 3, 4)
        ]
        assert [p.name for p in (dest / "val" / name).iterdir()] == ["5.npy"]
    for path in dest.rglob("*.npy"):
        image = np.load(path, allow_pickle=False)
        assert (image.shape, image.dtype) == ((1, 150, 150), np.float64)
        assert (image.min(), image.max()) == (0, 1)


def test_raw_pairs(tmp_path):
    dest = make(tmp_path / "set", "sr", "raw", n=2)
    for i in range(1, 7):
        high, low = (np.load(dest / kind / f"sample{i}.npy") for kind in ("HR", "LR"))
        assert (high.shape, low.shape) == ((1, 150, 150), (1, 75, 75))
        mean = high.reshape(1, 75, 2, 75, 2).mean((2, 4))
        np.testing.assert_allclose(low, mean, rtol=0, atol=1e-15)
    assert len(files(dest)) == 12


def test_same_seed_same_files(tmp_path):
    a, b = (make(tmp_path / name, "model_ii", "raw", "--noise", "euclid") for name in "ab")
    other = make(tmp_path / "c", "model_ii", "raw", "--noise", "euclid", "--seed", 1)
    assert files(a) == files(b)
    assert not files(a).keys() & files(other).keys()


def test_params_draw_the_same_images(tmp_path):
    dest = make(tmp_path / "set", "model_ii", "raw", "--params", "--classes", "no_sub,cdm")
    params = dict(np.load(tmp_path / "set.params.npz", allow_pickle=False))
    assert len(params["path"]) == len(files(dest)) == 10
    again = render("model_ii", params, torch.float64).numpy()
    for path, image in zip(params["path"], again, strict=True):
        np.testing.assert_allclose(np.load(dest / path), image, rtol=1e-9)


@pytest.mark.parametrize("family", ["model_ii", "common", "sr"])
def test_packed_holds_the_raw_images(tmp_path, family):
    raw = make(tmp_path / "raw", family, "raw")
    packed = make(tmp_path / "packed", family, "packed")
    images = np.load(packed / "images.npy", allow_pickle=False)
    assert images.dtype == np.float32
    names = [line.split('"name": "')[1].split('"')[0] for line in rows(packed)]
    for name, image in zip(names, images, strict=True):
        path = raw / (name.replace("HR/", "LR/"))
        truth = axion(path)[0] if "axion" in name else np.load(path)
        np.testing.assert_array_equal(image.squeeze(), truth.squeeze().astype(np.float32))
    if family == "sr":
        assert np.load(packed / "targets.npy").shape == (15, 1, 150, 150)
    else:
        assert np.load(packed / "labels.npy").tolist() == [0, 1, 2] * 5
    if family == "common":  # its own val is the test split
        tests = np.load(packed / "split.npy") == 2
        assert tests.tolist() == [name.startswith("val") for name in names]


def rows(packed):
    (path,) = packed.glob("files.*")
    return path.read_text().splitlines()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--n-per-class", "0"], "--n-per-class"),
        (["--n-per-class", "-3"], "--n-per-class"),
        (["--n-per-class", "99999999999"], "--n-per-class"),
        (["--seed", "-1"], "--seed"),
        (["--seed", str(2**63)], "--seed"),
        (["--classes", "cdm,wdm"], "wdm"),
        (["--noise", "loud"], "--noise loud"),
        (["--source-mag", "nan"], "--source-mag"),
        (["--source-mag", "twenty"], "--source-mag"),
        (["--lens-light-mag", "1e9"], "--lens-light-mag"),
        (["--substructure-scale", "-1"], "--substructure-scale"),
        (["--family", "sr", "--noise", "euclid"], "zero point"),
        (["--params"], "--layout raw"),
        (["--device", "gpu9"], "--device gpu9"),
    ],
)
def test_bad_values_are_told_in_a_sentence(tmp_path, words, told):
    with pytest.raises(UserError, match=told) as caught:
        command("--family", "model_ii", "--n-per-class", "2", tmp_path / "set", *words)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mine", "words"),
    [("set/thesis.tex", ["raw"]), ("set/thesis.tex", ["packed"]),
     ("set.params.npz", ["raw", "--params"])],
)  # fmt: skip
def test_files_of_a_user_are_never_touched(tmp_path, mine, words):
    (tmp_path / mine).parent.mkdir(exist_ok=True)
    (tmp_path / mine).write_text("x")
    with pytest.raises(UserError, match=mine.split("/")[0]):
        make(tmp_path / "set", "model_ii", *words)
    assert files(tmp_path) == {mine: b"x"}
    (tmp_path / "empty").mkdir()
    assert files(make(tmp_path / "empty", "model_ii", words[0]))


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(RunError, match="No space"):
        make(tmp_path / "set", "model_ii", "raw")
    assert not any(tmp_path.iterdir())
