"""`lensdist doctor` on a machine where much is wrong, and on one where all is well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lensdist.cli import main
from lensdist.profiling import doctor, storage

pytestmark = pytest.mark.unit


def _command(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def test_what_is_wrong_is_found_with_what_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _command(tmp_path, "nvidia-smi", "echo 999.1")
    _command(tmp_path, "sbatch", "echo slurm 99.1")
    _command(tmp_path, "sinfo", "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    old = tmp_path / "old" / "submitit-0.1.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: submitit\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(old.parent)
    (tmp_path / "deepspeed.py").write_text("raise RuntimeError('no CUDA_HOME')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)

    assert main(["doctor", "--json", "--folder", str(tmp_path / "gone")]) == 1
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    states = {name: one["state"] for name, one in found.items()}
    assert states["submitit"] == states["disk"] == states["wandb"] == "missing"
    assert (
        states["cuda"] == states["launcher"] == states["slurm"] == states["deepspeed"] == "warning"
    )
    assert states["python"] == states["cpu"] == "ok"
    assert found["submitit"]["remedy"].startswith("pip install 'submitit>=")
    assert found["launcher"]["remedy"] == "unset MASTER_PORT"
    assert "no CUDA_HOME" in found["deepspeed"]["text"]
    assert "slurm 99.1" in found["slurm"]["text"]
    assert all(one["remedy"] for one in found.values() if one["state"] != "ok")
    assert {name for name, one in found.items() if one["needed"]} == {"submitit", "disk"}


def test_what_is_only_unused_does_not_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deepspeed.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["doctor", "--folder", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("missing  slurm") for line in lines)
    assert any(line.startswith("ok       disk") for line in lines)


def test_nothing_is_left_in_the_folder_that_was_measured(tmp_path: Path) -> None:
    speed = storage.measure(tmp_path)
    assert min(speed.free_gb, speed.write_mb, speed.read_mb, speed.files) > 0
    assert not [*tmp_path.iterdir()]


def test_an_extra_is_needed_by_nobody_who_did_not_ask_for_it() -> None:
    for one in doctor._packages():
        assert not (one.name.startswith("extra ") and one.needed)
