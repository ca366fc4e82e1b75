"""Which edits make a result outdated: those of modules it used, and that say something else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lensdist.utils import provenance

pytestmark = pytest.mark.unit

OLD = (
    '"""What it was."""\n\nX = 1\n"""The number."""\n\n\ndef f(a: int) -> int:\n    return a + X\n'
)


def _two(tmp_path: Path, new: str) -> list[str]:
    for name, text in (("old", OLD), ("new", new)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.py").write_text(text)
    recorded = {"m.py": provenance.sha256(tmp_path / "old" / "m.py")}
    return provenance.changed(recorded, tmp_path / "new", tmp_path / "old")


@pytest.mark.parametrize(
    ("new", "says_else"),
    [
        (OLD, False),
        (OLD.replace("What it was", "Better said"), False),
        (OLD.replace("The number", "A number").replace("X = 1", "X = 1  # once"), False),
        (OLD.replace("X = 1", "X = 2"), True),
        (OLD.replace("a + X", "a - X"), True),
        ("def f(:\n", True),
    ],
)
def test_only_what_code_says_counts(tmp_path: Path, new: str, says_else: bool) -> None:
    assert _two(tmp_path, new) == (["m.py"] if says_else else [])


def test_without_the_old_code_every_edit_counts(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(OLD)
    recorded = {"m.py": provenance.sha256(tmp_path / "m.py")}
    assert provenance.changed(recorded, tmp_path) == []
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "m.py").write_text(OLD + "# a comment\n")
    assert provenance.changed(recorded, tmp_path / "n") == ["m.py"]
    assert provenance.changed(recorded, tmp_path / "nowhere") == ["m.py"]


def test_only_loaded_modules_are_recorded() -> None:
    code = "import lensdist.train, lensdist.utils.provenance as p; print(*p.code())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = done.stdout.split()
    assert "train.py" in names
    assert "config/loader.py" in names
    assert "metrics/figures.py" not in names
