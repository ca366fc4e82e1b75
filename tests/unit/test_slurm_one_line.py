"""A chain of one phase, the chain that a command means, and the register of sent chains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm.register import Entry, register_file, registered
from slurm.submit import main
from tests.chains import write_chain, write_cluster
from tests.conftest import ROOT
from tests.fakes.slurm import FakeSlurm
from tests.unit.queued import fake, sendings, waits

pytestmark = pytest.mark.unit
__all__ = ["fake"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command in a folder of its own, with a register of its own: code, stdout and stderr."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "here").mkdir()
    (tmp_path / "packed").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_cluster(tmp_path / "here", executor="slurm", partition="gpu")

    def command(*words: str, at: str = "here") -> tuple[int, str, str]:
        (tmp_path / at).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / at)
        capsys.readouterr()
        return (main([*words]), *capsys.readouterr())

    return command


SENT = ["submit", "mae/debug", "--cluster", "cluster.yaml", "train.max_steps=4"]


def test_a_preset_is_a_chain_of_one_phase(run: Run, tmp_path: Path, fake: FakeSlurm) -> None:
    code, said, told = run(*SENT)
    assert (code, told) == (0, "")
    assert said.splitlines()[-1] == "debug: job 101"
    assert fake.jobs["101"]["name"] == "mae-debug-debug"
    runs = tmp_path / "here" / "runs" / "mae-debug"
    assert len(sendings(runs / ".submit")) == 1
    # The same words name it again; so does nothing at all.
    for words in (["mae/debug"], []):
        code, said, _ = run("status", "--json", *words)
        assert code == 0
        assert [(row["phase"], row["job"]) for row in json.loads(said)] == [("debug", "101")]
    assert run("cancel", "debug")[1] == "debug: job 101 cancelled\n"
    assert run("resume", "mae/debug")[0] == 0
    assert waits(fake) == {"102": ""}


def test_a_configuration_is_a_chain_of_one_phase(run: Run, tmp_path: Path, fake: FakeSlurm) -> None:
    """Also if its name is a number, or that of a setting."""
    for name, phase in (("best", "best"), ("train", "run-train"), ("2 größen", "run-2-gr-en")):
        config = tmp_path / f"{name}.yaml"
        config.write_text(f"defaults: [{ROOT}/configs/mae/debug.yaml]\n")
        words = ["--config", str(config), "--cluster", "cluster.yaml", "--sweep", "seed=1,2"]
        code, said, told = run("submit", *words)
        assert (code, told) == (0, "")
        assert f"{phase}@seed=1: job " in said
        code, said, _ = run("status", "--config", str(config))
        assert code == 0
        assert f"{phase}@seed=2" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["common/bets"], "did you mean common/best?"),
        (["mae/debug", "sr/debug"], "not mae/debug, sr/debug"),
        (["mae/debug", "--chain", "debug"], "not --chain debug, mae/debug"),
        (["mae/debug", "--config", "x.yaml"], "not --config x.yaml, mae/debug"),
        (["my/own.yaml"], "give it as --config or --chain my/own.yaml"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_names_no_chain(run: Run, words: list[str], sentence: str) -> None:
    code, said, told = run("plan", *words)
    assert (code, said) == (2, "")
    assert sentence in told


def test_nothing_is_trained_on_a_login_node_by_accident(
    run: Run, tmp_path: Path, fake: FakeSlurm
) -> None:
    code, said, told = run("submit", "mae/debug")
    assert (code, said) == (2, "")
    assert "--cluster local.yaml to run here on purpose" in told
    assert "slurm-gpu.yaml" in told
    assert not (tmp_path / "here" / "runs").exists()
    assert run("plan", "mae/debug")[0] == 0  # which trains nothing
    code, said, _ = run("plan", "mae/debug", "--cluster", "local.yaml")
    assert code == 0
    assert "  on       local" in said


def test_a_chain_is_found_from_any_folder(run: Run, tmp_path: Path, fake: FakeSlurm) -> None:
    chain = write_chain(tmp_path / "here", tmp_path / "packed", runs="runs/mine")
    words = ["--chain", "chain.yaml"]
    code, said, told = run("status", *words)
    assert (code, said) == (2, "")
    assert str(register_file()) in told
    assert f"{tmp_path}/here/runs/mine/.submit" in told
    assert run("status")[0] == 2
    assert run("submit", "--cluster", "cluster.yaml", *words)[0] == 0

    here = run("status", *words)
    assert here[0] == 0
    assert "101" in here[1]
    # By the file, by the chain's name, by its folder, or by nothing: it is the only one.
    elsewhere = [["--chain", str(chain)], ["--chain", "tiny"], []]
    for named in elsewhere:
        code, said, told = run("status", *named, at="else")
        assert (code, said) == here[:2]
        assert f"chain tiny in {tmp_path}/here/runs/mine, sent from {tmp_path}/here" in told
    assert run("status", f"runs={tmp_path}/here/runs/mine", at="else") == here
    code, said, _ = run("why", "pretrain", at="else")
    assert code == 0
    assert "--chain tiny" in said
    assert run("cancel", "evaluate", at="else")[:2] == (0, "evaluate: job 103 cancelled\n")
    code, said, told = run("status", f"runs={tmp_path}/nowhere", at="else")
    assert (code, said) == (2, "")
    assert f"{tmp_path}/nowhere/.submit does not exist" in told


def test_of_several_chains_none_is_changed_by_guess(
    run: Run, tmp_path: Path, fake: FakeSlurm
) -> None:
    assert run(*SENT)[0] == 0
    assert run(*SENT, f"runs={tmp_path}/other")[0] == 0
    code, said, told = run("status", "--json")  # the newest
    assert (code, json.loads(said)[0]["job"]) == (0, "102")
    assert f"{tmp_path}/other" in told
    for command in ("cancel", "resume"):
        code, said, told = run(command)
        assert (code, said) == (2, "")
        assert "2 chains were sent; say which one" in told
        assert f"as in `python slurm/submit.py {command} runs=" in told
    assert run("cancel", f"runs={tmp_path}/other")[1] == "debug: job 102 cancelled\n"


def test_of_several_chains_of_a_name_none_is_changed_by_guess(
    run: Run, tmp_path: Path, fake: FakeSlurm
) -> None:
    write_chain(tmp_path / "here", tmp_path / "packed", runs="runs/mine")
    words = ["--chain", "chain.yaml"]
    for runs in ([], [f"runs={tmp_path}/other"]):
        assert run("submit", "--cluster", "cluster.yaml", *words, *runs)[0] == 0
    for command in ("cancel", "resume"):
        code, said, told = run(command, *words)
        assert (code, said) == (2, "")
        assert f"{tmp_path}/here/runs/mine" in told
        assert f"{tmp_path}/other" in told
    assert "job 101 cancelled" in run("cancel", *words, f"runs={tmp_path}/here/runs/mine")[1]


def test_the_table_of_a_sweep_is_a_phase_for_commands(
    run: Run, tmp_path: Path, fake: FakeSlurm
) -> None:
    assert run(*SENT, "--sweep", "seed=1,2")[0] == 0
    (table,) = [one["phase"] for one in json.loads(run("status", "--json")[1])
                if one["phase"].startswith("sweep-")]  # fmt: skip
    assert table in run("status", table)[1]
    assert run("cancel", table)[1].startswith(f"{table}: job")
    code, said, told = run("resume", table)
    assert code == 0, told
    assert f"{table}: job" in said
    code, said, told = run("resume", "sweep-0")
    assert (code, said) == (2, "")
    assert "no sweep-0 was sent" in told


def test_chains_are_listed(run: Run, tmp_path: Path, fake: FakeSlurm) -> None:
    assert run("chains") == (0, "chain  sent  phases  runs\n", "")
    write_chain(tmp_path / "here", tmp_path / "packed", runs="runs/mine")
    assert run("submit", "--cluster", "cluster.yaml", "--chain", "chain.yaml")[0] == 0
    assert run(*SENT)[0] == 0
    assert run(*SENT[:-1], f"runs={tmp_path}/gone")[0] == 0
    (tmp_path / "gone").rename(tmp_path / "moved")
    fake.set("101", state="FAILED")
    with register_file().open("ab") as file:  # a row that was cut short
        file.write(b'{"name": "x", "ru')
    calls = len(fake.calls)
    code, said, told = run("chains", "--json", at="else")
    assert code == 0
    assert "1 damaged row(s) skipped" in told
    assert [call[0] for call in fake.calls[calls:]].count("squeue") == 1
    rows = json.loads(said)
    assert [(row["name"], row["exists"], row["phases"]) for row in rows] == [
        ("mae-debug", False, {}),
        ("mae-debug", True, {"PENDING": 1}),
        ("tiny", True, {"FAILED": 1, "PENDING": 2}),
    ]
    assert rows[2]["cwd"] == str(tmp_path / "here")
    said = run("chains")[1]
    assert "1 FAILED, 2 PENDING" in said
    assert "  gone  " in said
    assert run(*SENT[:-1], "runs=again")[0] == 0  # a row after one that was cut short
    assert registered(print)[0].runs == tmp_path / "here" / "again"


def test_a_register_that_cannot_be_written_is_no_failure(
    run: Run, tmp_path: Path, fake: FakeSlurm
) -> None:
    (tmp_path / "state").write_text("a file")
    code, said, _ = run(*SENT)
    assert code == 0
    assert "warning: " in said
    assert "debug: job 101" in said
    assert run("status", "mae/debug")[0] == 0


def test_data_that_is_nowhere_is_told_before_it_is_sent(
    run: Run, tmp_path: Path, fake: FakeSlurm
) -> None:
    lost = f"data.path={tmp_path}/nowhere"
    code, said, told = run(*SENT, lost)
    assert (code, said) == (2, "")
    assert f"debug: {lost} does not exist here; correct it" in told
    assert not (tmp_path / "here" / "runs").exists()
    code, said, told = run("plan", *SENT[1:], lost)
    assert code == 0
    assert told == f"warning: debug: {lost} does not exist here\n"
    # Where the nodes may have other file systems, it is not an error.
    assert run("plan", "--chain", "debug", "--cluster", "local")[2] == ""  # earlier phases make it
    for more in (["--data-on-nodes"], ["cluster.container=[apptainer, exec, x.sif]"]):
        code, _, told = run(*SENT, lost, f"runs=runs/{len(more[0])}", *more)
        assert (code, told) == (0, f"warning: debug: {lost} does not exist here\n")


def test_inputs_of_points_and_of_packing(run: Run, tmp_path: Path, fake: FakeSlurm) -> None:
    """What a point of a sweep makes is not missing at the next phase; files to pack may be."""
    chain = write_chain(tmp_path / "here", tmp_path / "packed", runs="runs/mine")
    words = ["--chain", "chain.yaml", "--cluster", "cluster.yaml"]
    assert run("plan", *words, "--sweep", "seed=1,2")[2] == ""
    text = json.loads(chain.read_text())
    text["phases"] = {"files": {"pack": {"src": "raw"}}} | text["phases"]
    chain.write_text(json.dumps(text))
    code, _, told = run("submit", *words)
    assert code == 2
    assert told.startswith("error: files: src=raw does not exist here; correct it")


def test_rows_of_a_later_version_are_read(run: Run, tmp_path: Path) -> None:
    row = {"name": "x", "runs": "/r", "cwd": "/c", "time": 1.5, "more": 1}
    register_file().parent.mkdir(parents=True)
    register_file().write_text(json.dumps(row))
    said: list[str] = []
    assert registered(said.append) == [Entry(name="x", runs="/r", cwd="/c", time=1.5)]
    assert not said
