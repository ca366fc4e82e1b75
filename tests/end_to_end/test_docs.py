"""The documents' examples, typed as they stand, in an empty folder: a task of the user's own."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, environment, forked

pytestmark = [pytest.mark.unit, pytest.mark.timeout(1500)]


def blocks(name: str) -> list[tuple[str, str]]:
    """Languages and contents of a document's code blocks."""
    return re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "docs" / name).read_text(), re.M | re.S)


def typed(command: str, folder: Path, few: str = "") -> None:
    """Run a document's line in a shell, `lensdist` being this one; `few`: settings behind it."""
    env = {**environment(), "PYTHONPATH": str(ROOT)}
    line = re.sub(r"^lensdist ", f"{sys.executable} -m lensdist ", f"{command} {few}")
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr


def lensdist(words: str, folder: Path, code: int = 0) -> str:
    """What the command says, in a folder."""
    done = forked("lensdist", *words.split(), folder=folder)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where docs/add-a-task.md has been followed to its end."""
    folder = tmp_path_factory.mktemp("mylab")
    python, config, shell = (text for _, text in blocks("add-a-task.md"))
    (folder / "brightness.py").write_text(python)
    (folder / "brightness.yaml").write_text(config)
    for line in shell.splitlines():
        typed(line, folder)
    return folder


def test_a_task_of_the_user_s_own_is_trained_scored_and_exported(folder: Path) -> None:
    run = folder / "runs" / "brightness"
    assert json.loads((run / "COMPLETE.json").read_text())["task"] == "brightness:Brightness"
    assert json.loads((run / "eval" / "test.json").read_text())["metrics"]["rmse"] > 0
    assert (folder / "exported" / "model.pt2").is_file()


def test_it_predicts_resumes_and_is_reported_as_any_other(folder: Path) -> None:
    images = np.load(folder / "runs" / "brightness" / "data" / "images.npy", mmap_mode="r")
    (folder / "lenses").mkdir()
    for k in range(3):
        np.save(folder / "lenses" / f"{k}.npy", images[k])
    lensdist("predict runs/brightness lenses --out t.csv --trust brightness", folder)
    rows = list(csv.DictReader((folder / "t.csv").open()))
    assert [row["file"] for row in rows] == [f"lenses/{k}.npy" for k in range(3)]
    assert all(np.isfinite(float(row["log10_sum"])) for row in rows)
    assert "rmse" in lensdist("report runs/brightness --out table", folder)
    lensdist("train --config brightness.yaml run.dir=b train.max_steps=5", folder)
    again = "train --config brightness.yaml run.dir=c data.path=b/data train.epochs=1"
    lensdist(f"{again} train.max_steps=5 --resume never", folder)
    weights = [(folder / run / "export" / "model.safetensors").read_bytes() for run in "bc"]
    assert weights[0] == weights[1]


def test_no_program_that_only_a_file_names_is_run(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    spy = "open('ran', 'w')\n" + (folder / "brightness.py").read_text()
    (folder / "elsewhere" / "brightness.py").write_text(spy)
    here = folder / "elsewhere"
    for command in (
        "evaluate ../runs/brightness --data ../runs/brightness/data",
        "predict ../runs/brightness ../lenses --out t.csv",
        "export ../runs/brightness --format pt2 --out exported",
    ):
        assert "--trust brightness" in lensdist(command, here, 2)
    lensdist("report ../runs/brightness --out table", here)
    lensdist("check ../runs/brightness", here, 1)
    assert not (here / "ran").exists()


def test_a_network_of_the_user_s_own_is_trained_alone_and_beside_another(tmp_path: Path) -> None:
    python, shell = (text for _, text in blocks("add-a-network.md"))
    (tmp_path / "mynets.py").write_text(python)
    for line in shell.splitlines():
        typed(line, tmp_path, "data.n_per_class=10" if line.startswith("lensdist train") else "")
    for run in ("small", "both"):
        described = json.loads((tmp_path / "runs" / run / "export" / "config.json").read_text())
        assert described["model"]["members"][0] == "mynets:Small"
    assert (tmp_path / "runs" / "small" / "eval" / "test.json").is_file()


@pytest.mark.parametrize("name", ["add-a-task.md", "add-a-network.md"])
def test_a_guide_stays_short(name: str) -> None:
    assert len((ROOT / "docs" / name).read_text().splitlines()) <= 60
