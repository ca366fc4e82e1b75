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
        told = capsys.readouterr().out
        assert name in told
        assert f"\n  lensdist {name} " in told or name == "bench"  # an example, on its own line


def test_the_launcher_is_a_command_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["slurm", "status", "runs=here"]) == 2
    assert "runs=here" in capsys.readouterr().err
    assert cli.main(["slurm", "status", "pretrian"]) == 2
    assert "pretrain" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        cli.main(["slurm", "logs", "-f", "--help"])
    assert left.value.code == 0
    assert "lensdist slurm logs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian", "mae/debug"], "did you mean train?"),
        (["frobnicate"], "simulate"),
        (["evaluate", "runs/x"], "--data"),
        (["train", "mae/debug", "--resme", "never"], "--resume"),
        ([], "COMMAND"),
    ],
)
def test_a_slip_of_the_hand_is_one_sentence(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    error = capsys.readouterr().err
    assert (left.value.code, error.count("\n")) == (2, 1)
    assert error.startswith("error: ")
    assert told in error
