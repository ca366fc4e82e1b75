"""`lensdist bench` of result tables: what it imports, what it refuses, and its presets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from experiments import common_task, super_resolution
from experiments.settings import CommonTable, SuperResolutionTable
from lensdist.cli import main
from tests.conftest import ROOT

pytestmark = pytest.mark.unit


def test_command_lines_import_no_torch() -> None:
    code = "import sys, lensdist.commands.bench, experiments.cli, benchmarks.speed.run; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("few-labels --labels 5000", "only 4000 are for training"),
        ("few-labels --noise hubble", "--noise"),
        ("few-labels --seeds 0", "--seeds"),
        ("few-labels --labels 1", "--labels"),
        ("few-labels --configs nowhere", "give --configs"),
        ("common --images 9000", "only 4800 of the"),
        ("common --images 100", "100 images cannot be shared evenly by three classes"),
        ("common --images 3", "--images"),
        ("common --configs nowhere", "give --configs"),
        ("super-resolution --pairs 20000", "only 10080 of the"),
        ("super-resolution --pairs 3", "--pairs"),
        ("super-resolution --configs nowhere", "give --configs"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    tmp_path: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words.split(), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["small", "full"])
def test_both_sizes_compare_presets_that_are_there(size: str) -> None:
    presets = {preset for preset, _ in common_task.METHODS[size].values()}
    for preset in presets | set(super_resolution.PRESETS[size].values()):
        assert (ROOT / "configs" / preset).is_file()
    assert set(CommonTable(out=Path("x"), size=size).trained_on) >= {300, 3_000}
    cfg = SuperResolutionTable(out=Path("x"), size=size)
    assert cfg.trained_on == (100, 1_000, 10_000)
    assert [cfg.seeds_of(n) for n in cfg.trained_on] == [5, 5, 2]
    steps = [cfg.steps_of(n) for n in cfg.trained_on]
    assert [s / steps[-1] for s in steps] == [0.25, 0.5, 1.0]
