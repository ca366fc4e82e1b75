"""`lensdist export`: a run's best model, any step it kept, and exports, all of it or nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lensdist
from lensdist import cli, train
from lensdist.data.packing.simulated import write_packed
from lensdist.export import from_checkpoint, publish
from lensdist.sim.config import SimConfig
from lensdist.training import checkpoint
from tests.conftest import settings

pytestmark = pytest.mark.unit


def trained(task: str, data: Path, folder: Path, **more: Any) -> Path:
    quick = {"train.max_steps": 6, "checkpoint.every_steps": 2, "checkpoint.keep": 3, **more}
    assert train.main(settings(task, data, folder, **quick)) == 0
    return folder


@pytest.fixture(scope="module")
def classifier(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an average of its weights, and checkpoints of steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("classifier") / "run"
    return trained("finetune", tiny_set, folder, **{"train.ema": 0.5})


@pytest.fixture(scope="module")
def autoencoder(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without an average; its preprocessing has tensors of its own."""
    more = {"preprocess.scale": "residual", "preprocess.components": 3}
    folder = tmp_path_factory.mktemp("autoencoder") / "run"
    return trained("mae", tiny_set, folder, **more)


def unfinished(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    (folder / "COMPLETE.json").unlink()
    shutil.rmtree(folder / "export")
    return folder


def export(*words: object) -> int:
    return cli.main(["export", *map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], out: Path, *words: object, code: int = 2) -> str:
    """The sentence; the exit code, and that nothing is written, are checked."""
    before = set(out.parent.rglob("*"))
    assert export(*words, "--out", out) == code
    assert set(out.parent.rglob("*")) == before
    sentence = capsys.readouterr().err
    assert sentence.startswith("error: ")
    assert sentence.count("\n") == 1
    return sentence


def described(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def test_the_chosen_model(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in (classifier, classifier / "export"):
        out = tmp_path / f"of-{source.name}"
        assert export(source, "--out", out) == 0
        assert f"{out}: safetensors, largest difference from the original 0 of" in (
            capsys.readouterr().out
        )
        theirs, mine = (
            load_file(classifier / "export/model.safetensors"),
            load_file(out / "model.safetensors"),
        )
        assert theirs.keys() == mine.keys()
        assert all(torch.equal(theirs[k], mine[k]) for k in theirs)
        facts = described(out)
        assert facts["checked"]["max_abs_difference"] == 0
        assert facts["checked"]["images"] == 12
        original = described(classifier / "export")
        del original["seal"]  # of more: "checked"
        assert {k: facts[k] for k in original} == original
        assert lensdist.load(out).labels == lensdist.load(classifier).labels


def test_every_step_has_its_own_weights(classifier: Path, tmp_path: Path) -> None:
    assert export(classifier, "--step", "all", "--out", tmp_path / "all") == 0
    names = [f"step-{n:08d}" for n in (2, 4, 6)]
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == names
    assert export(classifier, "--step", 4, "--out", tmp_path / "four") == 0
    for step, folder in [(2, "all/step-00000002"), (4, "all/step-00000004"), (4, "four")]:
        saved = checkpoint.read(classifier / "checkpoints" / f"step-{step:08d}").tensors
        found = load_file(tmp_path / folder / "model.safetensors")
        assert all(torch.equal(v, saved[f"average/{k}"]) for k, v in found.items())
        assert any(not torch.equal(v, saved[f"model/{k}"]) for k, v in found.items())
        assert described(tmp_path / folder)["metrics"]["step"] == step
        lensdist.load(tmp_path / folder)


def test_what_validation_found_belongs_to_its_own_step(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, export = checkpoint.read, from_checkpoint.read_export

    def chosen(*args: Any) -> Any:
        found = read(*args)
        state = {**found.meta["state"], "best": 0.5, "best_step": 2}
        return replace(found, meta={**found.meta, "state": state})

    def more(path: Path) -> Any:
        description, weights = export(path)
        return {**description, "likeness": {}, "threshold": 0.3, "images": {}}, weights

    monkeypatch.setattr(checkpoint, "read", chosen)
    monkeypatch.setattr(from_checkpoint, "read_export", more)
    for step, best in ((2, 0.5), (4, None)):
        description, _ = from_checkpoint.at_step(classifier, step)
        assert description["metrics"] == {
            "selected_by": f"--step {step}",
            "val": best,
            "step": step,
        }
        assert not {"likeness", "threshold", "images"} & description.keys()


@pytest.mark.parametrize("which", ["classifier", "autoencoder"])
def test_an_unfinished_run_is_described_as_a_finished_one(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run: Path = request.getfixturevalue(which)
    other = unfinished(run, tmp_path / "unfinished")
    for source, name in ((run, "a"), (other, "b")):
        assert export(source, "--step", 4, "--out", tmp_path / name) == 0
    finished, begun = (described(tmp_path / name) for name in "ab")
    for one in (finished, begun):
        del one["seal"]
        one["preprocessing"].pop("limits", None)  # they are measured when training is done
        one.pop("threshold", None)  # as is this
    assert finished == begun
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_other_formats_stand_beside_their_description(
    kind: str, autoencoder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert export(autoencoder, "--format", kind, "--out", out) == 0
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "config.json", f"model.{kind}"]
    facts = described(out)
    assert facts["kind"] == kind
    assert list(facts["sha256"]) == [f"model.{kind}"]
    assert facts["inputs"]["image"] == {"dtype": "float32", "shape": ["batch", 1, 64, 64]}
    assert facts["checked"]["max_abs_difference"] <= 1e-4 * facts["checked"]["max_abs_output"]
    weights = described(autoencoder / "export")["sha256"]
    assert facts["exported_from"] == weights


# ---- what is refused


def test_a_step_that_is_not_there(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = refused(capsys, tmp_path / "x", classifier, "--step", 5)
    assert "no checkpoint of step 5; kept are the steps 2, 4, 6" in sentence


def test_no_model_has_been_chosen_yet(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = unfinished(classifier, tmp_path / "run")
    assert "give --step N or --step all (kept are the steps 2, 4, 6)" in refused(
        capsys, tmp_path / "x", run
    )
    shutil.rmtree(run / "checkpoints")
    sentence = refused(capsys, tmp_path / "x", run, "--step", "all")
    assert "holds no checkpoint; it has kept none" in sentence


def test_what_is_no_run(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = refused(capsys, tmp_path / "x", classifier / "export", "--step", 4)
    assert "has no checkpoints; leave out --step" in sentence
    assert "no exported model" in refused(capsys, tmp_path / "x", tmp_path)


@pytest.mark.parametrize("step", ["4", "all"])
def test_a_damaged_checkpoint_is_named(
    step: str, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(classifier, run)
    path = run / "checkpoints" / "step-00000004" / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    sentence = refused(capsys, tmp_path / "x", run, "--step", step)
    assert f"{path}: altered since it was written" in sentence


def test_an_altered_export_is_refused(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(classifier, run)
    with (run / "export" / "model.safetensors").open("ab") as f:
        f.write(b" ")
    assert "was altered" in refused(capsys, tmp_path / "x", run)
    assert "was altered" in refused(capsys, tmp_path / "x", run / "export")
    (run / "COMPLETE.json").unlink()
    assert "was damaged or changed" in refused(capsys, tmp_path / "x", run / "export")


def test_other_data_than_it_was_trained_on(
    classifier: Path, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = unfinished(classifier, tmp_path / "run")
    config = run / "config.yaml"
    text = config.read_text()
    write_packed(tmp_path / "other", SimConfig(family="model_ii"), 10, 1)
    config.write_text(text.replace(str(tiny_set), str(tmp_path / "other")))
    sentence = refused(capsys, tmp_path / "x", run, "--step", 4)
    assert "was trained with another data.path" in sentence
    config.write_text(text.replace(str(tiny_set), str(tmp_path / "gone")))
    assert "gone" in refused(capsys, tmp_path / "x", run, "--step", 4)
    config.write_text(text.replace("lr: 0.001", "lr: 0.002"))
    sentence = refused(capsys, tmp_path / "x", run, "--step", 4)
    assert "optim.lr: 0.001 -> 0.002" in sentence


def test_files_of_a_user_are_never_touched(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("mine")
    assert "exists already" in refused(capsys, tmp_path / "mine", classifier)
    assert (tmp_path / "mine").read_text() == "mine"
    assert "exists already" in refused(capsys, tmp_path, classifier)


def test_what_computes_something_else_is_not_published(
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    read = publish.read_export

    def off(path: Path) -> Any:
        """The copy, whose logits are 3e-4 too large."""
        description, weights = read(path)
        last = sorted(name for name in weights if name.startswith("head."))[-2:]
        return description, weights | {name: weights[name] * (1 + 3e-4) for name in last}

    monkeypatch.setattr(publish, "read_export", off)
    sentence = refused(capsys, tmp_path / "x", classifier, "--step", "all", code=1)
    assert "outputs differ by" in sentence


def test_a_full_disk_leaves_nothing(
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publish, "write_atomic", full)
    sentence = refused(capsys, tmp_path / "x", classifier, "--step", "all", code=1)
    assert "cannot be written: No space left on device" in sentence


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{run}", "{run}", "--step", "4"], "--step takes one RUN"),
        (["{run}", "--combine", "logits"], "--combine takes several RUNs"),
        (["{run}", "{run}"], "only runs of task common can be combined"),
    ],
)
def test_what_does_not_go_together(
    words: list[str],
    sentence: str,
    classifier: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [w.format(run=classifier) for w in words]
    assert sentence in refused(capsys, tmp_path / "x", *given)


@pytest.mark.parametrize("step", ["-1", "4.5", "best"])
def test_a_step_is_a_number_or_all(step: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as e:
        export(tmp_path, f"--step={step}", "--out", tmp_path / "x")
    assert e.value.code == 2
