"""A run touches only what a run has made, and two runs never share a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lensdist import train
from lensdist.distributed.context import DistributedContext
from lensdist.runs import phase
from lensdist.runs.lock import held
from lensdist.utils.owners import Owner, owner_of, tag
from tests.conftest import forked, settings
from tests.runs import record, rows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900), pytest.mark.usefixtures("handlers")]


def short(data: Path, run: Path, **more: Any) -> list[str]:
    return settings("mae", data, run, **{"train.max_steps": 2, "train.log_every": 1, **more})


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run at `runs/a`."""
    run = tmp_path_factory.mktemp("finished") / "a"
    assert forked("lensdist.train", *short(tiny_set, run)).returncode == 0
    return run


# ---- two runs


def _meanwhile(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str, other: Callable[[], Any]
) -> None:
    """The first time that `name` is called, something else happens before."""
    original, todo = getattr(place, name), [other]

    def held_up(*args: Any, **kwargs: Any) -> Any:
        if todo:
            todo.pop()()
        return original(*args, **kwargs)

    monkeypatch.setattr(place, name, held_up)


def test_of_two_runs_that_start_together_one_has_the_folder(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = []

    def the_other() -> None:
        words = short(tiny_set, tmp_path / "run", **{"optim.lr": 0.5})
        codes.append(forked("lensdist.train", *words).returncode)

    # By then this run has checked the folder.
    _meanwhile(monkeypatch, DistributedContext, "agree", the_other)
    codes.append(train.main(short(tiny_set, tmp_path / "run")))
    assert codes == [2, 0]
    config = record(tmp_path / "run")["config"]
    assert config["optim"]["lr"] == 1e-3
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text()) == config
    assert [row["step"] for row in rows(tmp_path / "run", "train")] == [1, 2]


@pytest.mark.parametrize(("rate", "code"), [(1e-3, 0), (0.5, 2)])
def test_a_run_that_was_finished_meanwhile_is_left_alone(
    rate: float, code: int, tiny_set: Path, finished: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    before: dict[Path, Any] = {}

    def the_other() -> None:
        shutil.copytree(finished, tmp_path / "run")
        before.update(files(tmp_path / "run"))

    _meanwhile(monkeypatch, phase, "context_of", the_other)
    assert train.main(short(tiny_set, tmp_path / "run", **{"optim.lr": rate})) == code
    assert files(tmp_path / "run") == before


def test_every_process_of_a_refused_run_leaves(tiny_set: Path, tmp_path: Path, port: int) -> None:
    with held(tmp_path):
        words = short(tiny_set, tmp_path)
        done = forked("lensdist.train", *words, processes=2, port=port, timeout=120)
        assert done.returncode == 2
    assert done.stderr.count("another run is writing to") == 1
    assert not list(tmp_path.iterdir())


# ---- what is somebody's own


@pytest.mark.parametrize(
    "name", ["config.yaml", "metrics.jsonl", "notes.txt", "checkpoints/mine", "export/model", "a/b"]
)
def test_a_folder_with_files_of_the_users_is_refused(
    name: str, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine: 1\n")
    before = files(tmp_path)
    assert train.main(short(tiny_set, tmp_path)) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / name.partition("/")[0]) in said
    assert "give another run.dir" in said
    assert files(tmp_path) == before


@pytest.mark.parametrize("inside", [".", "run"])
def test_the_data_is_no_place_for_a_run(
    inside: str, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(tiny_set, tmp_path / "packed")
    before = files(data)
    assert train.main(short(data, data / inside)) == 2
    assert "give another run.dir" in capsys.readouterr().err
    assert files(data) == before
    assert not (data / "run").exists()


def test_logs_hidden_files_and_a_set_may_lie_there(tiny_set: Path, tmp_path: Path) -> None:
    for name in ("train.log", "slurm-1.out", ".gitignore"):
        (tmp_path / name).write_text("mine")
    data = shutil.copytree(tiny_set, tmp_path / "data")
    assert train.main(short(data, tmp_path)) == 0
    assert (tmp_path / "train.log").read_text() == "mine"


def _stopped(data: Path, run: Path) -> list[str]:
    """The command of a run that was killed."""
    words = short(data, run, **{"train.max_steps": 4, "checkpoint.every_steps": 1})
    done = forked("tests.faults.killer", "step", 2, "--", *words)
    assert done.returncode == -9, done.stderr
    return words


def test_a_killed_run_goes_on_without_its_mark_and_what_it_left_goes(
    tiny_set: Path, tmp_path: Path
) -> None:
    words = _stopped(tiny_set, tmp_path / "run")
    dead = owner_of(f".x.{tag()}")
    assert dead is not None
    name = f"{2**22 + 1}-1-000000@{dead.machine}-{dead.host}"
    here, elsewhere = ".a.json." + name, ".a.json." + name.replace(dead.machine, "0badcafe")
    assert owner_of(here + ".tmp") == Owner(2**22 + 1, 1, dead.machine, dead.host)
    left = [f"{here}.tmp", f"export/{elsewhere}.tmp", "checkpoints/.step-00000003.9.old",
            ".data.0badcafe.partial"]  # fmt: skip
    alive = tmp_path / "run" / f".mine.{tag()}"  # no temporary file of ours
    for one in left:
        (tmp_path / "run" / one).mkdir(parents=True)
    alive.touch()
    (tmp_path / "run" / ".lock").unlink()
    assert train.main(words) == 0
    assert alive.exists()
    hidden = [p.name for p in (tmp_path / "run").rglob(".*")]
    assert sorted(hidden) == sorted([".lock", alive.name])


def test_comments_in_a_runs_own_configuration_stay(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = _stopped(tiny_set, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    mine = "# the run of the paper\n" + config.read_text()
    config.write_text(mine)
    assert train.main([*words, "train.log_every=2"]) == 2  # may change, but not be said nowhere
    assert f"{config} was edited" in capsys.readouterr().err
    assert train.main([f"--config={config}"]) == 0
    assert config.read_text() == mine


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_run_dir_of_somebody_elses_is_one_sentence(tiny_set: Path, tmp_path: Path) -> None:
    nobody = 65534
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    words = [f"--config={Path('configs/mae/debug.yaml').resolve()}", f"run.dir={tmp_path}/run"]
    child = os.fork()
    if not child:
        os.setuid(nobody)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os._exit(train.main(words))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
