"""The command line as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from lensdist import cli

pytestmark = pytest.mark.unit


def test_every_command_can_be_called(capsys: pytest.CaptureFixture[str]) -> None:
    files = {p.stem for p in Path(cli.__file__).with_name("commands").glob("*.py")}
    assert files - {"__init__"} == cli.COMMANDS.keys()
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as left:
            cli.main([name, "--help"])
        assert left.value.code == 0
        assert name in capsys.readouterr().out
