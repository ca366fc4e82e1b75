"""Super-resolution's table: its settings, and the whole command at a tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import super_resolution as table
from lensdist.cli import main

pytestmark = pytest.mark.unit

MOVED = "bicubic moved to LR's means"
ALWAYS = ["nearest", "bilinear", "bicubic", MOVED, "linear 7x7", "oracle", "EDSR", table.REFERENCE]


@pytest.mark.timeout(1500)
def test_whole_command_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["bench", "super-resolution", "--out", str(out), "--pairs", "6,20", "--seeds", "2"]
    words += ["--n-per-class", "20", "--steps", "3", "train.global_batch=2", "train.epochs=1"]
    words += ["optim.schedule.warmup_steps=0"]
    assert main([*words, "data.n_per_class=10"]) == 0
    results = json.loads((out / "results.json").read_text())
    rows = {(row["method"], row["pairs"]): row for row in results["rows"]}
    assert [row["method"] for row in results["rows"]][: len(ALWAYS)] == ALWAYS
    assert rows["bicubic", None]["gap"] == pytest.approx(1)
    assert rows["bicubic", None]["over_bicubic"] == 0
    assert 0 < rows[MOVED, None]["gap"] < 1
    assert rows["oracle", None]["gap"] == pytest.approx(0)
    assert rows["nearest", None]["gap"] > rows["bilinear", None]["gap"] > 1
    for n, runs in ((6, 2), (20, 1)):
        ours, random = rows[table.BEST, n], rows[table.RANDOM, n]
        assert ours["runs"] == random["runs"] == runs
        assert ours["mae_adds"] == pytest.approx(ours["psnr"] - random["psnr"])
        low, high = ours["mae_adds_ci"]
        assert low <= ours["mae_adds"] <= high
        assert 0 < ours["coverage_68"] < ours["coverage_95"] <= 1
    assert (table.TRUTH, 20) in rows
    recipe, ours = rows[table.REFERENCE, 20], rows[table.BEST, 20]
    assert (recipe["trained_on"], recipe["chosen_on"]) == (18, 2)
    assert (ours["trained_on"], ours["chosen_on"]) == (20, 0)
    capsys.readouterr()
    assert main([*words, "data.n_per_class=10"]) == 0  # nothing is left to do
    assert json.loads((out / "results.json").read_text()) == results
    assert main([*words, "data.n_per_class=10", "optim.lr=0.5"]) == 2
    assert "give another --out" in capsys.readouterr().err
