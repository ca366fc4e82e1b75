"""The documented ways to start a run, and the ready files of accelerate, as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lensdist.config import load
from lensdist.config.schema import schema_of
from tests.conftest import ROOT, environment, settings, start
from tests.runs import record

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

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
    assert record(run)["steps"] == 3, text
    assert f"on {processes} process(es)" in text


# ---- the commands of docs/training.md and of the files for accelerate, as they stand there


def _documented(where: str) -> str:
    """The command beside these words in docs/training.md's table."""
    text = (ROOT / "docs" / "training.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {where}")]
    return row.split("`")[1]


def _heading(name: str) -> str:
    """The command in the first line of a ready file."""
    file = ROOT / "configs" / "accelerate" / f"{name}.yaml"
    return file.read_text().splitlines()[0].removeprefix("# ")


def _typed(line: str, task: str, run: Path, **env: str) -> subprocess.Popen[str]:
    """Type a documented command: only the configuration, run.dir and its sizes are filled in."""
    config = f"configs/{task}/debug.yaml run.dir={run} train.max_steps=3 data.n_per_class=24"
    config += " optim.schedule.warmup_steps=0"
    assert line.count("…") == 1, line
    where = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        line.replace("…", config),
        shell=True,
        cwd=ROOT,
        env={**_plain(), "PATH": where, **env},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("line", "task", "processes", "depends"),
    [
        (_documented("the same through accelerate"), "mae", 1, "depends on"),
        (_heading("cpu"), "common", 2, "depends on"),
        (_documented("4 CPU processes"), "sr", 4, "does not depend on"),
        (_documented("torchrun"), "mae", 2, "depends on"),
        (_documented("DeepSpeed's launcher"), "mae", 2, "depends on"),
    ],
)
def test_a_documented_command_does_what_it_says(
    line: str, task: str, processes: int, depends: str, tmp_path: Path
) -> None:
    typed = _typed(line, task, tmp_path / "run")
    _, text = typed.communicate(timeout=240)
    assert typed.returncode == 0, text
    _finished(tmp_path / "run", processes, text)
    assert text.count(f"micro_batch auto: the result {depends} the number of processes") == 1
    assert ("(BatchNorm, dropout)" in text) == (task == "common")
    assert ("precision bf16" in text) == (task == "common")  # as its configuration says


def test_two_nodes(tmp_path: Path, port: int) -> None:
    """With one process a node, for eight GPUs are not here."""
    line = _documented("2 nodes of 8").replace("HEAD", "127.0.0.1")
    line = line.replace(" -m ", f" --num_processes 2 --main_process_port {port} -m ")
    run, cpu = tmp_path / "run", {"ACCELERATE_USE_CPU": "true"}
    nodes = [_typed(line.replace(" R ", f" {rank} "), "mae", run, **cpu) for rank in (0, 1)]
    errors = [node.communicate(timeout=200)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    _finished(run, 2, errors[0])


def test_processes_that_mpirun_starts(tmp_path: Path) -> None:
    """With its variables alone, for no MPI is here."""
    launch, line = _documented("MPI").split(" python ")
    assert launch == "mpirun -n 2"
    run, mpi = tmp_path / "run", {"PMIX_NAMESPACE": tmp_path.name}
    mpi |= dict.fromkeys(("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"), "2")
    ranks = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
    both = [
        _typed(f"python {line}", "mae", run, **mpi, **dict.fromkeys(ranks, str(rank)))
        for rank in (0, 1)
    ]
    errors = [one.communicate(timeout=200)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], errors
    _finished(run, 2, errors[0])


def test_what_processes_cannot_share_is_one_sentence_and_the_last(tmp_path: Path) -> None:
    line = _documented("4 CPU processes").replace("num_processes 4", "num_processes 3")
    typed = _typed(line, "mae", tmp_path / "run")
    _, text = typed.communicate(timeout=240)
    assert typed.returncode == 1  # accelerate's own, whatever its processes leave with
    sentence = "error: train.global_batch 16 cannot be shared evenly by 3 processes; set train."
    assert [line.startswith(sentence) for line in text.splitlines()].count(True) == 1
    assert "[process" not in text
    *_, last, border = text.splitlines()
    assert sentence in last
    assert set(border) == {"="}
    assert not (tmp_path / "run").exists()


# ---- flags and other files


@pytest.mark.long  # a documented command, above, trains in bf16 on two processes
def test_bf16_autocast_trains(tiny_set: Path, tmp_path: Path, port: int) -> None:
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
