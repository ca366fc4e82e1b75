"""`lensdist check`: what is whole passes, what is not is named, and exit codes say so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lensdist import cli, train
from lensdist.utils.sealed import sealed
from tests.conftest import settings

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_set: Path) -> Path:
    """A folder with a finished run and its own copy of the set."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(tiny_set, folder / "packed")
    words = settings("mae", folder / "packed", folder / "runs" / "mae")
    assert train.main([*words, "train.max_steps=2"]) == 0
    return folder


def test_what_is_whole_passes(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(made)]) == 0
    told = capsys.readouterr().out
    for name in ("images.npy", "report.json", "COMPLETE.json", "export", "step-00000002"):
        assert f"{name}  (" in told
    assert "DAMAGED" not in told


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _file_for_folder(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("packed/images.npy", flip),
        ("packed/report.json", flip),
        ("packed/manifest.json", Path.unlink),
        ("packed/split.npy", Path.unlink),
        ("runs/mae/COMPLETE.json", lambda path: path.write_text("{")),
        ("runs/mae/config.yaml", lambda path: path.write_text("a: [")),
        ("runs/mae/metrics.jsonl", lambda path: path.write_text("{\n")),
        ("runs/mae/export/model.safetensors", flip),
        ("runs/mae/export/config.json", Path.unlink),
        ("runs/mae/checkpoints/step-00000002/state.safetensors", flip),
        ("runs/mae/checkpoints/step-00000002/checkpoint.json", flip),
        ("runs/mae/checkpoints/step-00000002", lambda p: (shutil.rmtree(p), p.mkdir())),
        ("runs/mae/checkpoints", _file_for_folder),
    ],
)
def test_damage_is_named(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str,
    damage: Callable[[Path], object],
) -> None:  # fmt: skip
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    damage(copy / name)
    assert cli.main(["check", str(copy)]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if "DAMAGED" in line]
    thing = "step-00000002" if "step-" in name else Path(name).name
    assert any(thing in line for line in wrong), wrong


def test_what_is_none_of_these(tmp_path: Path, made: Path) -> None:
    (tmp_path / "thesis").mkdir()
    for path in ("thesis", "nowhere"):
        assert cli.main(["check", str(made), str(tmp_path / path)]) == 2
    folder = tmp_path / "thesis" / "wandb"  # another tool's files of the same names
    folder.mkdir()
    (folder / "config.yaml").write_text("_wandb: {}")
    (folder / "config.json").write_text(json.dumps({"a": 1}))
    assert cli.main(["check", str(tmp_path)]) == 2


def test_scores_that_were_altered_are_named(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "mae"
    shutil.copytree(made / "runs" / "mae", run)
    (run / "eval").mkdir()
    scores = run / "eval" / "test.json"
    scores.write_text(json.dumps(sealed({"metrics": {"mse": 0.25}})))
    assert cli.main(["check", str(run)]) == 0
    scores.write_text(scores.read_text().replace("0.25", "0.24"))
    assert cli.main(["check", str(run)]) == 1
    assert "test.json: altered since it was written" in capsys.readouterr().out
