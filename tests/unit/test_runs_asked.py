"""A finished run is only what is asked for if nothing that decides its result differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lensdist import cli, train
from lensdist.data.manifest import Manifest
from lensdist.phases import completed
from lensdist.runs.asked import named_weights, other_inputs
from lensdist.utils.errors import UserError
from tests.conftest import settings
from tests.runs import CommonRun

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("handlers")]

QUICK = {"train.max_steps": 6, "train.micro_batch": 16, "checkpoint.every_steps": 3}
COSINE = {"optim.schedule": "{kind: cosine}"}


def _words(data: Path, run: Path, task: str = "mae", **more: Any) -> list[str]:
    return settings(task, data, run, **{**QUICK, **more})


def _trained(data: Path, run: Path, task: str = "mae", **more: Any) -> Path:
    assert train.main(_words(data, run, task, **more)) == 0
    return run


@pytest.fixture(scope="module")
def finished(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pretraining of 6 steps, the same along a cosine, and a fine-tuning."""
    root = tmp_path_factory.mktemp("asked")
    mae = _trained(tiny_set, root / "mae")
    return {
        "mae": mae,
        "cosine": _trained(tiny_set, root / "cosine", **COSINE),
        "finetune": _trained(tiny_set, root / "finetune", "finetune", encoder=mae),
    }


@pytest.fixture
def run(finished: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the pretraining."""
    return Path(shutil.copytree(finished["mae"], tmp_path / "mae"))


@pytest.fixture
def other_set(tiny_set: Path, tmp_path: Path) -> Path:
    """The same images under another fingerprint."""
    folder = Path(shutil.copytree(tiny_set, tmp_path / "other"))
    facts = json.loads((folder / "manifest.json").read_text())
    facts["seed"] += 1
    facts["fingerprint"] = Manifest.model_validate(facts).hash()
    facts["seal"] = Manifest.model_validate(facts).hash(sealed=True)
    (folder / "manifest.json").write_text(json.dumps(facts))
    return folder


def _asked(words: list[str], capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    capsys.readouterr()
    code = train.main([*words, *more])
    return code, capsys.readouterr().err


def _refused(words: list[str], capsys: pytest.CaptureFixture[str], *told: str) -> str:
    code, said = _asked(words, capsys)
    assert code == 2
    assert all(one in said for one in told), said
    return said


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train.max_steps": 3}, "train.max_steps: 6 -> 3"),
        ({"train.max_steps": 12}, "train.max_steps: 6 -> 12"),
        ({"train.max_steps": "null"}, "train.max_steps: 6 -> None"),
        ({"train.epochs": 3}, "train.epochs: 4 -> 3"),
        ({"train.early_stop": 2}, "train.early_stop: None -> 2"),
        ({"data.n_per_class": 99}, "data.n_per_class"),
    ],
)
def test_what_decides_the_result_is_never_passed_over(
    changes: dict[str, Any], sentence: str, run: Path, tiny_set: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    said = _refused(_words(tiny_set, run, **changes), capsys, f"({sentence}")
    assert "nothing to do" not in said
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_what_does_not_is_free(
    run: Path, tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free = {"train.log_every": 1, "checkpoint.keep": 9, "preset": "mine", "data.resident": "no"}
    code, said = _asked(_words(tiny_set, run, **free), capsys)
    assert (code, said.count("\n")) == (0, 1)
    assert "complete (6 steps); nothing to do\n" in said
    code, said = _asked(_words(tiny_set, run, **{"speed.bucket_mb": 7}), capsys)
    assert code == 0
    assert "speed.bucket_mb: 100 -> 7 would change last bits at most" in said


def test_a_set_that_was_moved_is_the_same_and_another_is_not(
    run: Path, tiny_set: Path, other_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "moved").symlink_to(tiny_set)
    assert _asked(_words(tmp_path / "moved", run), capsys)[0] == 0
    _refused(_words(other_set, run), capsys, f"data.path: {tiny_set} -> {other_set}")
    _refused(_words(tmp_path / "absent", run), capsys, "absent is not a packed set")
    own = [word for word in _words(tiny_set, run) if not word.startswith("data.path")]
    _refused(own, capsys, f"data.path: {tiny_set} -> None")


def test_an_encoder_is_known_by_its_weights(
    finished: dict[str, Path], tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, moved = finished["finetune"], tmp_path / "moved"
    shutil.copytree(finished["mae"], moved)
    for same in (moved, moved / "export"):
        assert _asked(_words(tiny_set, run, "finetune", encoder=same), capsys)[0] == 0
    others = {finished["cosine"]: str(finished["cosine"]), "null": "None"}
    for other, named in others.items():
        words = _words(tiny_set, run, "finetune", encoder=other)
        _refused(words, capsys, f"encoder: {finished['mae']} -> {named}")
    shutil.rmtree(moved)
    words = _words(tiny_set, run, "finetune", encoder=moved)
    _refused(words, capsys, "encoder: ", "No such file")


def test_going_on_where_the_schedule_lets_it_is_what_the_error_says(
    run: Path, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = {"train.max_steps": 9}
    _, said = _asked(_words(tiny_set, run, **longer), capsys)
    hint = f"run.dir=NEW --resume {run}/checkpoints/step-00000006"
    assert hint in said
    words = _words(tiny_set, tmp_path / "NEW", **longer)
    assert train.main([*words, *hint.split()[1:]]) == 0
    record = completed(tmp_path / "NEW")
    assert record is not None
    assert record["steps"] == 9
    # Fewer steps than were done are in no state of it.
    _, said = _asked(_words(tiny_set, run, **{"train.max_steps": 3}), capsys)
    assert "--resume" not in said


def test_a_cosine_says_why_it_cannot_go_on(
    finished: dict[str, Path], tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = _words(tiny_set, finished["cosine"], **COSINE, **{"train.max_steps": 12})
    assert "--resume" not in _refused(words, capsys, "cosine of the learning rate")


def test_a_run_that_goes_on_says_what_is_asked_otherwise_now(
    run: Path, tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "COMPLETE.json").unlink()
    _refused(_words(tiny_set, run, **{"train.max_steps": 4}), capsys, "past the 4 steps")
    changes = {"train.early_stop": 9, "checkpoint.keep": 3}
    code, said = _asked(_words(tiny_set, run, **changes), capsys)
    assert code == 0
    assert "train.early_stop: None -> 9" in said
    assert "checkpoint.keep" not in said
    record = completed(run)
    assert record is not None
    assert record["config"]["train"]["early_stop"] == 9


def test_the_model_of_a_run_that_is_not_finished_is_not_used(
    run: Path, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "COMPLETE.json").unlink()
    for model in (run, run / "export"):
        assert cli.main(["evaluate", str(model), "--data", str(tiny_set)]) == 2
        assert f"{run} is not finished" in capsys.readouterr().err
        words = _words(tiny_set, tmp_path / "finetune", "finetune", encoder=model)
        _refused(words, capsys, f"{run} is not finished")
    assert not (tmp_path / "finetune").exists()


def test_files_of_weights_are_known_by_what_they_hold(tiny_set: Path, tmp_path: Path) -> None:
    file, moved = tmp_path / "resnet18.pth", tmp_path / "moved.pth"
    file.write_bytes(b"one")
    moved.write_bytes(b"one")
    raw = {"task": "common", "run": {"dir": tmp_path}, "data": {"path": tiny_set}}

    def run(**more: Any) -> CommonRun:
        return CommonRun.model_validate({**raw, "model": {"members": ["resnet18"]}, **more})

    cfg = run(weights={"resnet18": file})
    saved = {"config": cfg.model_dump(mode="json"), "weights": named_weights(cfg)}
    assert other_inputs(saved, run(weights={"resnet18": moved})) == []
    assert len(other_inputs(saved, run())) == 1
    file.write_bytes(b"two")
    assert other_inputs(saved, cfg) == [f"weights: other ones in {{'resnet18': '{file}'}}"]
    # What an older version has not recorded cannot be compared.
    assert other_inputs({"config": saved["config"]}, cfg) == []
    file.unlink()
    with pytest.raises(UserError, match=r"weights\.resnet18: .* No such file"):
        other_inputs(saved, cfg)
