"""Disks and streams that misbehave: one sentence, the exit code as documented, nothing lost."""

from __future__ import annotations

import errno
import os
import resource
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from lensdist import cli
from lensdist.metrics.report import check_results, write_results
from lensdist.training import checkpoint
from lensdist.utils.errors import UserError
from lensdist.utils.files import fsync, write_atomic
from lensdist.utils.staging import set_aside
from tests.conftest import ROOT
from tests.unit import data_files
from tests.unit.exported import write_model

pytestmark = pytest.mark.faults
CONFIG = "configs/mae/debug.yaml"


# ---- fsync


def _folders_refuse(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.fsync

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        original(handle)

    monkeypatch.setattr(os, "fsync", refuse)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS])
def test_a_file_system_that_cannot_sync_a_folder_saves_all_the_same(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _folders_refuse(number, monkeypatch)
    path = checkpoint.write(tmp_path, 1, {"w": torch.ones(3)}, {})
    assert checkpoint.read(path).step == 1
    assert write_atomic(tmp_path / "a", "text").read_text() == "text"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_to_sync_is_not_passed_over(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _folders_refuse(number, monkeypatch)
    with pytest.raises(OSError, match=os.strerror(number)):
        checkpoint.write(tmp_path, 1, {}, {})


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_folder_that_may_be_written_but_not_opened() -> None:
    child = os.fork()
    if not child:
        os.setuid(65534)
        folder, status = Path(f"/tmp/.lensdist-{os.getpid()}"), 1
        folder.mkdir(mode=0o300)
        try:
            fsync(folder)
            status = 0
        finally:
            folder.rmdir()
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---- full disks


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file may have more than 4 kB."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python would cut its own files short
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _answer(words: Sequence[object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = cli.main([str(word) for word in words])
    return code, capsys.readouterr().err


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model")) / "export"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return data_files.common(tmp_path / "images")


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize(
    "command",
    ["simulate --family model_ii --n-per-class 4 --layout packed {out}",
     "simulate --family model_ii --n-per-class 4 --layout raw {out}",
     "pack {source} {out} --jobs 1", "evaluate {model} --data {data} --split val --out {out}",
     "export {model} --out {out}", "report {many} --partial --out {out}"],
)  # fmt: skip
def test_a_full_disk_is_one_sentence_and_nothing_is_left(
    command: str, model: Path, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    source = request.getfixturevalue("source") if "{source}" in command else ""
    many = " ".join(f"{tmp_path}/{'r' * 60}{i}" for i in range(60))
    out = tmp_path / "out"
    words = command.format(out=out, model=model, data=tiny_set, source=source, many=many).split()
    code, said = _answer(words, capsys)
    assert code == 1, said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in said
    assert str(out) in errors[0]
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and source == ""]


@pytest.mark.parametrize(
    "command",
    ["simulate --family model_ii --n-per-class 4 --layout raw {out}",
     "pack {source} {out} --jobs 1", "evaluate {model} --data {data} --split val --out {out}",
     "report nothing --partial --out {out}", "export {model} --out {out}",
     f"estimate --config {CONFIG} --json {{out}}", f"profile --config {CONFIG} --out {{out}}",
     f"bench speed --config {CONFIG} --out {{out}}", "bench common --out {out}",
     f"train --config {CONFIG} run.dir={{out}}"],
)  # fmt: skip
@pytest.mark.parametrize("place", ["file/x", "file", "x" * 300, "loop/x"])
def test_a_place_where_nothing_can_be_written_is_refused(
    command: str, place: str, model: Path, tiny_set: Path, source: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    out = tmp_path / place
    words = command.format(out=out, model=model, data=tiny_set, source=source).split()
    code, said = _answer(words, capsys)
    assert (code, "Traceback" in said) == (2, False), said
    assert said.startswith("error: ")
    assert (tmp_path / "file").read_text() == "mine"


# ---- somebody's own files


@pytest.mark.parametrize(
    ("command", "name"),
    [("report nothing --partial --out {out}", "results.md"),
     ("report nothing --partial --out {out}", "results.json"),
     ("bench common --out {out}", "results.md"), ("bench few-labels --out {out}", "results.json"),
     (f"bench speed --config {CONFIG} --out {{out}}", "speed.md"),
     (f"profile --config {CONFIG} --out {{out}}", "profile.json"),
     (f"profile --config {CONFIG} --out {{out}}", "trace.json.gz"),
     (f"estimate --config {CONFIG} --json {{out}}/a.json", "a.json"),
     ("evaluate {model} --data {data} --split val --out {out}", "eval/val.json"),
     ("evaluate {model} --data {data} --split val --out {out}", "figures/roc.png")],
)  # fmt: skip
def test_a_file_that_is_not_ours_is_not_replaced(
    command: str, name: str, model: Path, tiny_set: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text('{"mine": 1}')
    words = command.format(out=tmp_path, model=model, data=tiny_set).split()
    code, said = _answer(words, capsys)
    assert code == 2
    assert f"{mine} was not written by this command" in said
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [mine]


def test_our_own_results_are_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert _answer(["report", "nothing", "--partial", "--out", tmp_path], capsys)[0] == 0
    words = ["estimate", "--config", CONFIG, "--json", tmp_path / "a.json"]
    assert [_answer(words, capsys)[0] for _ in range(2)] == [0, 0]


# ---- closed streams


def _in_a_shell(command: str) -> subprocess.CompletedProcess[str]:
    words = ["bash", "-c", command]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "streams", "code"),
    [("pack", "2>&-", 0), ("pack", "<&- >&- 2>&-", 0), ("pack", "2>&1 | true", 0),
     ("pack", ">/dev/full", 1), ("refused", "2>&-", 2), ("refused", "2>/dev/full", 2),
     ("plan", "| true", 0), ("plan", "2>&-", 0)],
)  # fmt: skip
def test_a_stream_that_is_closed_changes_no_exit_code(
    name: str, streams: str, code: int, source: Path, tmp_path: Path
) -> None:
    python = shlex.quote(sys.executable)
    command = {
        "pack": f"{python} -m lensdist.cli pack {source} {tmp_path}/out --jobs 1",
        "refused": f"{python} -m lensdist.cli pack {tmp_path}/nothing {tmp_path}/out",
        "plan": f"{python} slurm/submit.py plan --chain debug --cluster local runs={tmp_path}/runs",
    }[name]
    done = _in_a_shell(f"{command} {streams}; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if name == "pack":
        assert (tmp_path / "out" / "manifest.json").exists()


def test_what_is_beside_results_that_were_set_aside_is_ours(tmp_path: Path) -> None:
    """A table is made again: only the file that tells that it is complete was renamed."""
    write_results(tmp_path, [{"run": "a"}], "first")
    set_aside(tmp_path / "results.json")
    check_results(tmp_path)
    write_results(tmp_path, [{"run": "b"}], "second")
    (tmp_path / "results.json").write_text("{}")  # somebody's own
    with pytest.raises(UserError, match="was not written by this command"):
        check_results(tmp_path)
    (tmp_path / "results.json").unlink()
    next(tmp_path.glob("results.json.before-*")).write_text("{}")
    with pytest.raises(UserError, match="was not written by this command"):
        check_results(tmp_path)


# ---- clocks


def test_what_is_set_aside_in_the_same_second_is_kept_twice(tmp_path: Path) -> None:
    kept = []
    for text in ("one", "two", "three"):
        (tmp_path / "results.json").write_text(text)
        kept.append(set_aside(tmp_path / "results.json"))
    assert [path.read_text() for path in kept] == ["one", "two", "three"]
