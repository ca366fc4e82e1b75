"""The command line: its exit codes, and one sentence in place of a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lensdist.utils.errors import RunError
from slurm import commands
from slurm.job import load_job
from slurm.submit import main
from tests.chains import write_chain, write_cluster
from tests.fakes.slurm import FakeSlurm
from tests.unit.queued import fake, mark_complete, sendings, waits

pytestmark = pytest.mark.unit
__all__ = ["fake"]

Run = Callable[..., tuple[int, str, str]]
ON_ONE_CHAIN = ["status", "logs", "cancel", "resume", "why"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command on a tiny chain: its exit code, and what it says on stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # no chain of another test
    chain = write_chain(tmp_path, tmp_path / "packed")
    (tmp_path / "packed").mkdir()
    here, there = tmp_path / "here.yaml", tmp_path / "there.yaml"
    write_cluster(tmp_path).rename(here)
    write_cluster(tmp_path, executor="slurm").rename(there)

    def command(*words: str, on: Path = here) -> tuple[int, str, str]:
        first, *rest = words
        on = there if "slurm" in rest else on
        rest = [word for word in rest if word != "slurm"]
        capsys.readouterr()
        try:
            code = main([first, "--chain", str(chain), "--cluster", str(on), *rest])
        except SystemExit as e:  # argparse's own
            code = e.code if isinstance(e.code, int) else -1
        return code, *capsys.readouterr()

    return command


def _one_sentence(told: str) -> bool:
    return told.startswith("error: ") and told.count("\n") == 1 and "Traceback" not in told


@pytest.mark.parametrize("command", [*commands.ACTIONS])
def test_every_command_has_its_help(run: Run, command: str) -> None:
    code, said, told = run(command, "--help")
    assert (code, told) == (0, "")
    assert commands.SUMMARIES[command].capitalize() in " ".join(said.split())
    for word in ("--chain", "--config", "--cluster", "preset|phase|key=value"):
        assert word in said


def test_help_names_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(f"\n    {command} " in said for command in commands.ACTIONS)


@pytest.mark.parametrize(
    "words",
    [[], ["send"], ["plan", "--dry"], ["logs", "-n", "many"], ["resume", "--nodes"],
     ["status", "--sweep", "seed=1"], ["cancel", "--chain"]],
)  # fmt: skip
def test_wrong_command_lines(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main(words)
    assert e.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["plan", "--rerun-on", "nonsense"], "'nonsense' is not one of config, data, code, none"),
        (["submit", "--rerun-on", "config,none"], "'none' is not one of config, data, code, none"),
        (["plan", "--test-only"], "executor is not slurm"),
        (["plan", "--sweep", "seed"], "give key=value,value"),
        (["plan", "optim.lr=fast", "pretrain"], ": optim.lr (command line): "),
        (["plan", "cluster.nodse=2"], "did you mean 'nodes'?"),
        (["submit", "evaluate"], "evaluate needs finetune, which is not complete; submit it too"),
        *(([one, "pretrian"], "did you mean 'pretrain'?") for one in ON_ONE_CHAIN),
        (["status", "--chain", "nowhere.yaml"], "nowhere.yaml"),
        (["plan", "--cluster", "nowhere.yaml"], "nowhere.yaml"),
        *(([one], "no chain tiny was sent") for one in ON_ONE_CHAIN),
        (["resume", "pretrain"], "submit.py submit common/best --cluster FILE` or "),
        (["plan", "--cluster", "slurm-gpuu"], "slurm-gpuu: no such file; did you mean 'slurm-gpu'"),
        (["plan", "--cluster", "nope.yaml"], "these come with lensdist: local, slurm-8gpu, "),
        (["plan", "--chain", "debgu"], "debgu: no such file; did you mean 'debug'? If not, these "),
        (["plan", "--sweep", "seed=1,2%x"], "'%x' is not %N, how many points may run at once"),
        (["plan", "mae/debug", "po/x"], "quote a path with blanks"),
    ],
)
def test_bad_input_exits_with_2(run: Run, tmp_path: Path, words: list[str], sentence: str) -> None:
    code, said, told = run(*words)
    assert (code, said) == (2, "")
    assert sentence in told
    assert all(map(_one_sentence, told.splitlines(keepends=True)))
    assert not (tmp_path / "runs").exists()


def test_of_one_phase_nothing_has_happened_yet(run: Run, fake: FakeSlurm) -> None:
    assert run("submit", "pretrain", "slurm")[0] == 0
    fake.set("101", state="COMPLETED")
    assert run("cancel") == (0, "none of these phases is in the queue or runs\n", "")
    code, _, told = run("logs", "-f", "finetune")
    assert code == 2
    assert "finetune was never sent, so it has no log; send it with: " in told
    assert run("resume", "finetune")[::2] == (2, "error: finetune was never sent: use `submit`\n")
    code, said, _ = run("why", "finetune")
    assert code == 0
    assert "finetune was never sent." in said


def test_status_for_programs(run: Run, fake: FakeSlurm) -> None:
    assert run("submit", "slurm")[0] == 0
    fake.set("101", state="RUNNING", nodes="gpu7")
    code, said, told = run("status", "--json")
    assert (code, told) == (0, "")
    rows = [(row["phase"], row["kind"], row["job"], row["state"]) for row in json.loads(said)]
    assert rows == [
        ("pretrain", "run", "101", "RUNNING"),
        ("finetune", "run", "102", "PENDING"),
        ("evaluate", "scores", "103", "PENDING"),
    ]
    assert len(json.loads(run("status", "finetune", "--json")[1])) == 1


def test_when_jobs_would_start(run: Run, tmp_path: Path, fake: FakeSlurm) -> None:
    code, said, _ = run("plan", "--test-only", "slurm")
    assert code == 0
    assert [line.partition(":")[0] for line in said.splitlines()] == [
        "pretrain",
        "finetune",
        "evaluate",
    ]
    assert "on 1 core of node1" in said
    sbatch = Path(fake.environment["PATH"].split(":")[0]) / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'invalid partition specified: gpuu' >&2\nexit 1\n")
    said = run("plan", "--test-only", "slurm")[1]
    assert said.startswith("pretrain, finetune, evaluate: refused: invalid partition")
    assert "; set partition in " in said
    sbatch.write_text(
        "#!/bin/sh\necho 'sbatch: error: Requested time limit is invalid' >&2\nexit 1\n"
    )
    code, said, told = run("plan", "--test-only", "slurm")
    assert (code, said.count("refused: ")) == (1, 1)
    assert said.startswith("pretrain, finetune, evaluate: refused: Requested time limit")
    assert _one_sentence(told)
    assert not fake.jobs
    assert not (tmp_path / "runs").exists()


def test_a_chain_is_sent_cancelled_and_resumed(run: Run, tmp_path: Path, fake: FakeSlurm) -> None:
    assert run("submit", "slurm")[0] == 0
    code, said, told = run("submit", "slurm")
    assert (code, said) == (2, "")
    assert _one_sentence(told)
    assert "is in the queue or runs already" in told
    assert run("cancel", "finetune", "evaluate")[1].splitlines() == [
        "finetune: job 102 cancelled",
        "evaluate: job 103 cancelled",
    ]
    assert waits(fake) == {"101": ""}
    # How it was sent need not be said again: the cluster here is another.
    assert run("resume", "finetune")[0] == 0
    assert waits(fake) == {"101": "", "104": "afterok:101", "105": "afterok:104"}
    assert len(sendings(tmp_path / "runs" / ".submit")) == 2


def test_what_is_complete_is_left(run: Run, tmp_path: Path, fake: FakeSlurm) -> None:
    assert run("submit", "pretrain", "slurm")[0] == 0
    fake.set("101", state="COMPLETED")
    mark_complete(tmp_path / "runs" / "pretrain", {})
    code, said, _ = run("submit", "pretrain", "--rerun-on", "none", "slurm")
    assert code == 0
    assert said.startswith("pretrain: complete already, skipped (though ")
    code, _, told = run("resume", "pretrain")  # which is what was sent, or nothing
    assert code == 2
    assert "was completed with other settings" in told
    (sent,) = (tmp_path / "runs" / ".submit").glob("2*/pretrain.json")
    mark_complete(tmp_path / "runs" / "pretrain", load_job(sent).target.settings)
    assert run("resume", "pretrain") == (0, "pretrain: complete already, skipped\n", "")
    assert [*fake.jobs] == ["101"]


def test_failures_exit_with_1(run: Run, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("submit", "slurm")[0] == 0
    fake.down()
    for command in ("status", "cancel", "resume", "why", "logs"):
        code, said, told = run(command)
        assert (code, said) == (1, "")
        assert _one_sentence(told)
        assert "Unable to contact slurm controller" in told
    fake.down(False)
    fake.refuse("Invalid account")
    fake.set("101", state="FAILED")
    code, _, told = run("resume")
    assert code == 1
    assert "error: pretrain was refused, so nothing is queued" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("command", "error", "code", "sentence"),
    [
        ("submit", KeyboardInterrupt(), 1, "interrupted; run the same command to go on\n"),
        ("resume", KeyboardInterrupt(), 1, "interrupted; run the same command to go on\n"),
        ("logs", KeyboardInterrupt(), 0, ""),
        ("cancel", RunError("scancel: no"), 1, "error: scancel: no\n"),
    ],
)
def test_how_a_command_is_left(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, error: BaseException, code: int,
    sentence: str,
) -> None:  # fmt: skip
    def fall(_: object) -> None:
        raise error

    monkeypatch.setitem(commands.ACTIONS, command, fall)
    assert run(command) == (code, "", sentence)


def test_one_point_of_a_sweep_is_cancelled_alone(run: Run, fake: FakeSlurm) -> None:
    assert run("submit", "pretrain", "--sweep", "pretrain.seed=1,2", "slurm")[0] == 0
    run("cancel", "pretrain@pretrain.seed=2")
    states = {job: found["state"] for job, found in fake.jobs.items()}
    assert states == {"101_0": "PENDING", "101_1": "CANCELLED", "102": "PENDING"}


def test_options_may_stand_anywhere(
    tmp_path: Path, tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the contract has it, and as `why` prints it: phases, files, settings."""
    chain, cluster = write_chain(tmp_path, tiny_set), write_cluster(tmp_path)
    words = ["pretrain", "--chain", str(chain), "--cluster", str(cluster), "seed=7", "-h"]
    assert main(["plan", *words[:-1], f"runs={tmp_path / 'else'}"]) == 0
    assert f"{tmp_path / 'else'}/pretrain" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["plan", *words[:-1], "--nonsense", "seed=1"])
    assert "unrecognized arguments: --nonsense" in capsys.readouterr().err


def test_why_speaks_of_a_refusal(run: Run, fake: FakeSlurm) -> None:
    fake.refuse("sbatch: error: Requested time limit is invalid (missing or exceeds some limit)")
    assert run("submit", "slurm")[0] == 1
    code, said, _ = run("why")
    assert code == 0
    assert said.startswith("pretrain (job ?, stopped) was stopped: SLURM refused it: ")
    assert "submit --chain" in said
    assert "cluster.walltime=MINUTES" in said
    assert run("resume")[0] == 1  # as it was
    fake.refuse("")
    assert run("submit", "slurm")[0] == 0
    assert run("why")[1].startswith("pretrain (job 101, PENDING")
