"""docs/slurm.md as a reader of the first day follows it."""

from __future__ import annotations

import re

import pytest

from slurm.commands import ACTIONS
from tests.conftest import ROOT

pytestmark = pytest.mark.unit


def _typed() -> list[str]:
    """The commands of submit.py in blocks of code, without comments."""
    blocks = re.findall(r"```\w*\n(.*?)```", (ROOT / "docs" / "slurm.md").read_text(), re.DOTALL)
    lines = (line.partition("#")[0].split() for block in blocks for line in block.splitlines())
    return [" ".join(words[2:]) for words in lines if words[1:2] == ["slurm/submit.py"]]


def test_no_command_trains_on_a_login_node() -> None:
    typed = _typed()
    assert {line.split()[0] for line in typed} <= {*ACTIONS}
    sends = [line for line in typed if line.split()[0] in ("plan", "submit")]
    assert len(sends) >= 4
    assert [line for line in sends if "--cluster mine.yaml" not in line] == []
