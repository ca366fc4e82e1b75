"""The notebooks of the documentation, run cell by cell with fewer images and epochs."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from lensdist import Model, Run
from lensdist.cli import main
from lensdist.metrics import page
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

_FOLDER = ROOT / "docs" / "notebooks"


def _run(name: str, **smaller: object) -> dict[str, object]:
    """The names after all cells; `!lensdist` is run in this process, `NAME = …` of `smaller` is."""
    notebook = json.loads((_FOLDER / name).read_text())
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert not cell["outputs"]  # a light file, whose results are the reader's own
        lines = "".join(cell["source"]).splitlines()
        for command in (line for line in lines if line.startswith("!")):
            words = shlex.split(command[1:].format(**names))
            assert words[0] == "lensdist"
            assert main(words[1:]) == 0, command
        exec("\n".join(line for line in lines if not line.startswith("!")), names)
        names |= {key: value for key, value in smaller.items() if key in names}
    return names


def test_my_images_in_ten_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handlers: None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "_library", lambda: "")  # 2 s, and tested beside the page
    found = _run("my-images.ipynb", PRESET="finetune/debug", PER_CLASS=16, EPOCHS=1)
    run, model = found["run"], found["model"]
    assert isinstance(run, Run)
    assert isinstance(model, Model)
    assert run.done
    assert 0 <= run.row["test_accuracy"] <= 1
    assert re.search("task finetune, preset debug", repr(run))
    assert np.shape(found["maps"]) == (4, 64, 64)
    assert np.shape(found["vectors"]) == (4, 64)
    assert "Surest mistakes" in (tmp_path / "table" / "report.html").read_text()
