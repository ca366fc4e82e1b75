"""The README's ways to start a run, and the ready files of accelerate, as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lensdist.config import load
from lensdist.config.schema import schema_of
from lensdist.phases import completed
from tests.conftest import ROOT, environment, settings, start

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

ACCELERATE = [str(Path(sys.executable).with_name("accelerate")), "launch"]
FILE = ["--config_file", "accelerate_config.yaml"]


def _ready(name: str, port: int) -> list[str]:
    """One of the ready files, whose own port another test may hold."""
    file = f"configs/accelerate/{name}.yaml"
    return [*ACCELERATE, "--config_file", file, "--main_process_port", str(port)]


def _words(data: Path, run: Path, *more: str) -> list[str]:
    steps = {"train.max_steps": 3, "train.log_every": 1}
    return ["-m", "lensdist.train", *settings("mae", data, run, **steps), *more]


def _finished(run: Path, processes: int, text: str) -> None:
    record = completed(run)
    assert record is not None, text
    assert record["steps"] == 3
    assert f"on {processes} process(es)" in text


def test_the_config_file_as_it_stands(tiny_set: Path, tmp_path: Path) -> None:
    done = start([*ACCELERATE, *FILE, *_words(tiny_set, tmp_path / "run")], env=_plain())
    assert done.returncode == 0, done.stderr
    _finished(tmp_path / "run", 1, done.stderr)


def test_several_cpu_processes(tiny_set: Path, tmp_path: Path, port: int) -> None:
    flags = ["--multi_gpu", "--num_processes", "2", "--main_process_port", str(port)]
    done = start([*ACCELERATE, *FILE, *flags, *_words(tiny_set, tmp_path / "run")])
    assert done.returncode == 0, done.stderr
    _finished(tmp_path / "run", 2, done.stderr)


def test_two_nodes(tiny_set: Path, tmp_path: Path, port: int) -> None:
    command = [*_ready("2nodes", port), "--num_processes", "2", "--main_process_ip", "127.0.0.1"]
    words = _words(tiny_set, tmp_path / "run")
    nodes = [
        subprocess.Popen(
            [*command, "--machine_rank", str(rank), *words],
            cwd=ROOT,
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    errors = [node.communicate(timeout=200)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    _finished(tmp_path / "run", 2, errors[0])


def test_bf16_autocast_trains_and_resumes(tiny_set: Path, tmp_path: Path, port: int) -> None:
    words = _words(tiny_set, tmp_path / "run", "precision=bf16")
    done = start([*_ready("cpu", port), *words])
    assert done.returncode == 0, done.stderr
    _finished(tmp_path / "run", 2, done.stderr)
    assert "precision bf16" in done.stderr


def test_a_file_of_deepspeeds_decides_the_engine(tiny_set: Path, tmp_path: Path, port: int) -> None:
    words = _words(tiny_set, tmp_path / "run")
    done = start([*_ready("deepspeed-zero2", port), "--num_processes", "2", *words])
    assert done.returncode == 0, done.stderr
    _finished(tmp_path / "run", 2, done.stderr)
    cfg = load(tmp_path / "run" / "config.yaml", schema=schema_of)
    assert (cfg.engine, cfg.shard.stage) == ("deepspeed", 2)


def test_a_launcher_of_another_precision_is_refused(tiny_set: Path, tmp_path: Path) -> None:
    flags = ["--mixed_precision", "bf16"]
    words = _words(tiny_set, tmp_path / "run")
    done = start([*ACCELERATE, *FILE, *flags, *words], env=_plain())
    assert done.returncode != 0
    assert "change one of them" in done.stderr
    assert not (tmp_path / "run").exists()


def _plain() -> dict[str, str]:
    """Without ACCELERATE_USE_CPU: the file alone must do where there is no GPU, or one."""
    return {k: v for k, v in environment().items() if k != "ACCELERATE_USE_CPU"}
