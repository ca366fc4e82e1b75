"""What a run refuses before it writes anything, besides a wrong configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lensdist import train
from lensdist.data.packing.simulated import write_packed
from lensdist.runs.lock import held
from lensdist.sim.config import SimConfig
from tests.conftest import settings

pytestmark = pytest.mark.faults


def files(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != ".lock"}


def refused(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence; exit code 2 and nothing written are checked."""
    before = files(folder)
    assert train.main(words) == 2
    assert files(folder) == before
    return capsys.readouterr().err


def test_a_folder_in_use(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(tmp_path):
        sentence = refused(settings("mae", tiny_set, tmp_path), tmp_path, capsys)
    assert "another run is writing to" in sentence


def test_an_encoder_that_is_not_finished(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = tmp_path / "encoder"
    (encoder / "export").mkdir(parents=True)
    (encoder / "config.yaml").write_text("")
    (encoder / "export" / "config.json").write_text("{}")
    (encoder / "export" / "model.safetensors").write_text("")
    words = settings("finetune", tiny_set, tmp_path / "run", encoder=encoder)
    assert "is not finished" in refused(words, tmp_path, capsys)


def test_data_simulated_with_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_packed(tmp_path / "data", SimConfig(family="model_ii"), 10, 0)
    words = settings("mae", Path("null"), tmp_path, **{"data.n_per_class": 11})
    sentence = refused(words, tmp_path, capsys)
    assert "was simulated with other settings" in sentence


@pytest.mark.parametrize(
    ("name", "value"),
    [("GRADIENT_ACCUMULATION_STEPS", "4"), ("DYNAMO_BACKEND", "INDUCTOR"),
     ("MIXED_PRECISION", "bf16"), ("USE_FSDP", "true"), ("USE_MEGATRON_LM", "true")],
)  # fmt: skip
def test_a_launcher_that_would_change_what_a_step_computes(
    name: str,
    value: str,
    tiny_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    sentence = refused(settings("mae", tiny_set, tmp_path), tmp_path, capsys)
    assert "launcher" in sentence


def test_errors_of_other_processes_are_said_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    words: list[Any] = settings("mae", tmp_path / "no such set", tmp_path / "run")
    assert train.main(words) == 2
    assert "[process 3] error: " in capsys.readouterr().err


def test_a_torn_record_of_completion(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "COMPLETE.json").write_text(json.dumps({"files": {"config.yaml": "0" * 64}}))
    sentence = refused(settings("mae", tiny_set, tmp_path), tmp_path, capsys)
    assert "marked complete but" in sentence
