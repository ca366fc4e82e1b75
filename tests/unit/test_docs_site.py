"""The documentation as a site: `make docs`, where every warning is an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lensdist.cli import COMMANDS
from tests.conftest import ROOT, environment

pytestmark = pytest.mark.unit


def test_the_site_is_built_without_a_warning_and_has_its_generated_pages(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    env = {**environment(), "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    commands = (tmp_path / "command-line.html").read_text()
    assert all(f"lensdist {name}" in commands for name in COMMANDS)
    assert "PRESET key=value" in commands
    python = (tmp_path / "python.html").read_text()
    assert 'id="lensdist.export.model.LoadedModel.predict"' in python
    assert "make demo" in (tmp_path / "index.html").read_text()
