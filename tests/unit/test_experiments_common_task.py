"""The common task's table: its arithmetic, and the whole command at a tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.common_task import METHODS
from lensdist.cli import main

pytestmark = pytest.mark.unit


@pytest.mark.timeout(1500)
def test_whole_command_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    # Every row with the small network: what is tested is the table.
    words = ["bench", "common", "--out", str(out), "--images", "24", "--seeds", "2"]
    words += ["--n-per-class", "20", "model.members=[lensnet]", "model.grey=fold"]
    words += ["train.epochs=2", "train.global_batch=8", "optim.schedule.warmup_steps=0"]
    assert main(words) == 0
    results = json.loads((out / "results.json").read_text())
    rows = results["rows"]
    assert [row["method"] for row in rows] == list(METHODS["small"])
    assert {row["init"] for row in rows} == {"random"}
    assert "errors_avoided" not in rows[0]
    assert [(row["trained_on"], row["chosen_on"]) for row in rows] == [(21, 3), (24, 0), (24, 0)]
    assert all(row["lowest"] == min(row["accuracy_by_seed"]) for row in rows)
    for row in rows[1:]:
        low, high = row["gain_ci"]
        assert low <= row["gain"] <= high
        assert row["gain"] == pytest.approx(row["accuracy"] - rows[0]["accuracy"])
        error = 1 - rows[0]["accuracy"]
        assert row["errors_avoided"] == pytest.approx(1 - (1 - row["accuracy"]) / error)
    configs = sorted(out.glob("runs/*/config.yaml"))
    assert len(configs) == 6
    capsys.readouterr()
    assert main(words) == 0  # nothing is left to do
    assert json.loads((out / "results.json").read_text()) == results
    for change in (["--n-per-class", "30"], ["optim.lr=0.5"]):
        assert main([*words, *change]) == 2
        assert "give another --out" in capsys.readouterr().err
