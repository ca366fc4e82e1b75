"""Scores of a model on a split: intervals for all of them, and what averaging over views adds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lensdist.cli import main
from lensdist.data.packing.writer import PackedWriter, Sample
from lensdist.evaluate.run import TTA, open_subject, score_split
from lensdist.metrics import scores as metrics
from lensdist.utils.errors import UserError
from lensdist.utils.files import to_json
from tests.unit.exported import LABELS, write_model

pytestmark = pytest.mark.unit


def test_every_score_is_written_with_its_interval(tiny_set: Path, tmp_path: Path) -> None:
    subject = open_subject(write_model(tmp_path), tiny_set)
    scores, written = score_split(subject, "train")
    kept = json.loads((tmp_path / "export" / "eval" / "train.json").read_text())
    assert kept["data"]["fingerprint"] == subject.packed.manifest.fingerprint
    assert kept["weights"] == subject.description["sha256"]
    found = kept["metrics"]
    assert found["n"] == len(subject.packed.indices("train")) == scores["n"]
    for name in ("accuracy", "auc_macro"):
        low, high = found[f"{name}_ci"]
        assert low < found[name] < high, name
    assert len(found["ece_ci"]) == 2
    for auc, (low, high) in zip(found["auc_per_class"], found["auc_per_class_ci"], strict=True):
        assert low < auc < high
    assert set(found["roc"]) == set(LABELS)
    assert {"reliability", "confusion", "by_axion_mass"} <= found.keys()
    assert "tta" not in found
    names = {"train.json", "train.safetensors", "roc.png", "confusion.png", "reliability.png"}
    assert {path.name for path in written} == names
    assert all(path.is_file() for path in written)


@pytest.mark.parametrize("name", ["rot180", "dihedral"])
def test_views_are_averaged_as_probabilities(tiny_set: Path, tmp_path: Path, name: str) -> None:
    subject = open_subject(write_model(tmp_path), tiny_set)
    plain, _ = score_split(subject, "train", batch=50)
    with_views, _ = score_split(subject, "train", batch=50, tta=name)
    found = with_views.pop("tta")
    assert to_json(with_views) == to_json(plain)

    rows = subject.packed.indices("train")
    image = subject.packed.gather(rows)["image"].numpy()
    turns = [image, image[..., ::-1, ::-1]]
    if name == "dihedral":
        turns += [np.rot90(each, axes=(-2, -1)) for each in turns]
        turns += [each[..., ::-1] for each in turns]
    each = [subject.model.predict(np.ascontiguousarray(x))["logits"] for x in turns]
    mean = torch.from_numpy(np.stack(each)).double().softmax(-1).mean(0)
    truth = torch.from_numpy(subject.packed.labels[rows])
    want = metrics.classification(mean.log(), truth, LABELS)
    assert (found["views"], found["n_views"]) == (name, len(turns))
    for key in ("n", "accuracy", "confusion"):
        assert found[key] == want[key], key
    for key in ("auc_macro", "auc_per_class", "nll", "ece"):
        assert found[key] == pytest.approx(want[key], abs=2e-5), key
    assert found["accuracy"] != plain["accuracy"]  # or this would test nothing
    assert found["accuracy_gain"] == pytest.approx(found["accuracy"] - plain["accuracy"])
    low, high = found["accuracy_gain_ci"]
    assert low <= found["accuracy_gain"] <= high
    assert {"accuracy_ci", "auc_macro_ci", "auc_per_class_ci", "ece_ci"} <= found.keys()
    kept = json.loads((tmp_path / "export" / "eval" / "train.json").read_text())["metrics"]
    assert kept["tta"]["accuracy_gain_ci"] == found["accuracy_gain_ci"]


def test_an_autoencoder_has_no_views_to_average(tiny_set: Path, tmp_path: Path) -> None:
    subject = open_subject(write_model(tmp_path, "mae"), tiny_set)
    with pytest.raises(UserError, match=r"--tta .* is of task mae"):
        score_split(subject, "test", tta="rot180")
    scores, _ = score_split(subject, "test")
    assert scores["psnr_ci"][0] < scores["psnr"] < scores["psnr_ci"][1]


def test_images_that_are_not_scored_are_counted_by_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model knows no_sub, cdm and axion; of the last there is no image."""
    names = ["no_sub", "smooth", "cdm"]
    with PackedWriter(tmp_path / "set", labels=names, seed=0, source={}, kind="classify") as writer:
        for i in range(24):
            image = np.random.default_rng(i).random((1, 64, 64))
            writer.add(Sample(image, i % 4 if i % 4 < 3 else -1, str(i), split="test"))
        writer.finish()
    for task in ("finetune", "mae"):
        model = write_model(tmp_path / task, task)
        assert main(["evaluate", str(model), "--data", str(tmp_path / "set")]) == 0
        said = capsys.readouterr().out
        assert "left out 6 images: smooth, which is not a class of the model" in said
        assert "left out 6 images: unlabelled" in said
        assert "no images of axion, which is a class of the model" in said
        found = json.loads((model / "export" / "eval" / "test.json").read_text())["metrics"]
        assert found["n"] == 12
        assert found["left_out"] == {"smooth": 6, "unlabelled": 6}
        assert found["lacking"] == ["axion"]


def test_classes_of_other_names_are_mapped_and_all_splits_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["smooth", "vortex", "halos", "junk"]
    with PackedWriter(tmp_path / "set", labels=names, seed=0, source={}, kind="classify") as writer:
        for i in range(32):
            image = np.random.default_rng(i).random((1, 64, 64))
            split = ("train", "val", "test", "test")[i // 4 % 4]
            writer.add(Sample(image, -1 if split == "val" else i % 4, str(i), split=split))
        writer.finish()
    model, data = write_model(tmp_path), str(tmp_path / "set")
    words = ["evaluate", str(model), "--data", data]
    with pytest.raises(UserError, match="--map-labels"):
        open_subject(model, tmp_path / "set")
    mapped = ["--map-labels", "smooth=no_sub,halos=cdm,vortex=cdm"]
    assert main([*words, *mapped, "--split", "all"]) == 0
    assert "left out 6 images: junk" in capsys.readouterr().out
    kept = json.loads((model / "export" / "eval" / "all.json").read_text())
    assert kept["renamed"] == {"smooth": "no_sub", "halos": "cdm", "vortex": "cdm"}
    found = kept["metrics"]
    assert (found["n"], found["lacking"]) == (18, ["axion"])
    assert [sum(row) for row in found["confusion"]] == [6, 12, 0]
    assert found["left_out"] == {"junk": 6, "unlabelled": 8}
    for wrong in ({"smooth": "lens"}, {"lens": "cdm"}):
        with pytest.raises(UserError, match=r"--map-labels .*vortex.*axion"):
            open_subject(model, tmp_path / "set", renamed=wrong)
    subject = open_subject(model, tmp_path / "set", renamed={"smooth": "no_sub"})
    with pytest.raises(UserError, match=r"no labels.*lensdist predict"):
        score_split(subject, "val")


def test_scores_of_other_data_are_kept(tiny_set: Path, tmp_path: Path) -> None:
    subject = open_subject(write_model(tmp_path), tiny_set, tmp_path / "out")
    (tmp_path / "out" / "eval").mkdir(parents=True)
    other = tmp_path / "out" / "eval" / "test.json"
    other.write_text('{"data": {"fingerprint": "another"}}')
    with pytest.raises(UserError, match="holds the scores of other data"):
        score_split(subject, "test")
    assert "another" in other.read_text()


def test_a_model_of_another_size_is_refused(tiny_set: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"takes images of 1x32x32 but .* holds 1x64x64"):
        open_subject(write_model(tmp_path, size=32), tiny_set)


def test_the_command_line_knows_the_views() -> None:
    """It may not import torch to ask for them."""
    import argparse

    from lensdist.commands import evaluate

    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    for name in TTA:
        assert parser.parse_args(["run", "--data", "d", "--tta", name]).tta == name
    asked = parser.parse_args(["run", "--data", "d", "--hard"])
    assert (asked.tta, asked.hard, asked.family) == (None, 300, None)
    assert parser.parse_args(["run", "--data", "d"]).hard is None
    with pytest.raises(UserError, match=r"--family .*--hard"):
        evaluate.run(parser.parse_args(["run", "--data", "d", "--family", "common"]))
