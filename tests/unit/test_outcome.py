"""The word that a process leaves at its end, and what it says before it begins."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from lensdist import cli
from lensdist.utils import files, outcome
from lensdist.utils.errors import Busy, RunError, UserError, tell_error
from lensdist.utils.outcome import DeviceError, Outcome, conclude, leave, leave_for, read

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(outcome.FOLDER, str(tmp_path / "words"))
    monkeypatch.delenv("RANK", raising=False)
    return tmp_path / "words"


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def work() -> NoReturn:
        raise error

    return work


def only(folder: Path) -> Outcome:
    (word,) = read(folder)
    return word


# ---- the end


@pytest.mark.parametrize(
    ("code", "kind"), [(0, "done"), (75, "saved"), (2, "input"), (1, "failed"), (3, "failed")]
)
def test_an_exit_code_is_a_word(code: int, kind: str, folder: Path) -> None:
    assert conclude(lambda: code) == code
    word = only(folder)
    assert word.kind == kind
    assert word.bad == bool(word.error) == (code not in (0, 75))


@pytest.mark.parametrize(
    ("error", "kind", "code", "sentence"),
    [
        (Busy("a is held"), "busy", 2, "a is held"),
        (UserError("a: mend it"), "input", 2, "a: mend it"),
        (FileNotFoundError(2, "", "a"), "input", 2, "a: No such file"),
        (OSError(28, "", "a"), "failed", 1, "a: No space left"),
        (RunError("no number"), "failed", 1, "no number"),
        (DeviceError("cuda:0 errs"), "device", 1, "cuda:0 errs"),
        (KeyboardInterrupt(), "failed", 1, "interrupted"),
    ],
)
def test_a_foreseen_end_is_told_and_its_sentence_kept(
    error: BaseException, kind: str, code: int, sentence: str, folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert conclude(raising(error)) == code
    word = only(folder)
    assert (word.kind, word.traceback) == (kind, "")
    assert word.error.startswith(sentence)
    assert word.error in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (ValueError("one\n  two"), "crashed", "ValueError: one"),
        (MemoryError(), "crashed", "MemoryError"),
        (KeyError("name"), "crashed", "KeyError: 'name'"),
        (OSError("odd"), "crashed", "OSError: odd"),
        (SystemExit(None), "done", ""),
        (SystemExit(0), "done", ""),
        (SystemExit(2), "input", "it ended with exit code 2; see its log"),
        (SystemExit("no disk"), "failed", "no disk"),
    ],
)
def test_what_nobody_foresaw_goes_on_and_leaves_its_traceback(
    error: BaseException, kind: str, sentence: str, folder: Path
) -> None:
    with pytest.raises(type(error)):
        conclude(raising(error))
    word = only(folder)
    assert (word.kind, word.error, word.echo) == (kind, sentence, False)
    assert ("in work" in word.traceback) == (kind == "crashed")
    assert str(error) in word.traceback or kind != "crashed"


def test_nobody_asked_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(outcome.FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    assert conclude(lambda: 0) == 0
    outcome.announce("ready", "cpu", None, 0.0)
    assert not list(tmp_path.iterdir())


def test_a_word_that_cannot_be_left_changes_nothing_but_the_launcher_waits_for_readiness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(outcome.FOLDER, str(tmp_path / "file"))
    assert conclude(lambda: 75) == 75
    with pytest.raises(OSError):
        outcome.announce("ready", "cpu", None, 0.0)
    monkeypatch.setenv("RANK", "nobody")
    leave("done")


@pytest.mark.parametrize(
    "message",
    [
        "[/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4711",
        "NCCL error in: ProcessGroupNCCL.cpp:3699, remote process exited",
    ],
)
def test_who_fell_first_is_found_though_clocks_differ(
    message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, time, error in [
        ("3", 200.0, ValueError("mine")),
        ("0", 100.0, RuntimeError(message)),  # a node whose clock is slow
        ("7", 201.0, ValueError("mine, later")),
    ]:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr("time.time", lambda time=time: time)
        leave("crashed", error)
    monkeypatch.setenv("RANK", "1")
    leave("saved")
    assert [word.rank for word in read(folder)] == [3, 7, 0, 1]
    assert [word.echo for word in read(folder)] == [False, False, True, False]


def test_torn_lines_are_passed_over(folder: Path) -> None:
    leave("done")
    file = outcome.file_of(folder, 0)
    whole = file.read_text().strip()
    later = json.dumps({**json.loads(whole), "later": 1})
    file.write_bytes(f"{whole[:20]}\n[]\n{later}\n".encode() + b"\xff\xfe\n" + whole[:30].encode())
    leave("saved")  # its own line, though the last one has no end
    assert [word.kind for word in read(folder)] == ["saved"]
    assert read(folder / "nowhere") == []


def test_the_files_of_an_earlier_version_are_read(folder: Path) -> None:
    leave("saved")
    earlier = only(folder).model_copy(update={"rank": 3})
    (folder / "rank-00003.json").write_text(earlier.model_dump_json())
    (folder / "rank-00004.json").write_text("{")
    assert sorted(word.rank for word in read(folder)) == [0, 3]


def test_a_launcher_speaks_only_for_who_has_not_spoken(folder: Path) -> None:
    leave("saved")
    leave_for(folder, 0, "crashed", "lost")
    leave_for(folder, 4, "device", "no GPU", 3)
    assert [(w.rank, w.kind, w.error) for w in read(folder)] == [
        (4, "device", "no GPU"),
        (0, "saved", ""),
    ]
    assert read(folder)[0].host == outcome.node_name()


def test_a_thousand_processes_leave_a_file_for_each_node(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "sync", lambda handle: None)  # which takes seconds
    for rank in range(1024):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv(outcome.NODE, str(rank // 8))
        outcome.announce("device", "cuda", None, 1.0)
        outcome.announce("ready", "cuda", None, 2.0)
        leave("saved")
    assert len([*folder.iterdir()]) == 128
    assert sorted(word.rank for word in read(folder)) == [*range(1024)]


# ---- the beginning


def test_devices_and_readiness_are_told_apart(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome.announce("device", "cpu", None, 0.5)
    monkeypatch.setenv("RANK", "12")
    outcome.announce("device", "cuda:4 X", 312.5, 1.5)
    outcome.announce("ready", "cuda:4 X", 312.5, 2.5)
    file = outcome.file_of(folder, 0)
    assert sorted(word.rank for word in outcome.told(file, "device")) == [0, 12]
    (word,) = outcome.told(file, "ready")
    assert (word.rank, word.device, word.tflops, word.seconds) == (12, "cuda:4 X", 312.5, 2.5)
    assert read(folder) == []  # none of this is an end


# ---- the commands


@pytest.mark.parametrize(
    "words", [["pack", "nowhere", "x"], ["train", "--config", "nowhere"], ["train", "--no-flag"]]
)
def test_a_command_leaves_its_word(
    words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    with contextlib.suppress(SystemExit):  # argparse's
        assert cli.main(words) == 2
    assert only(folder).kind == "input"
    assert ("nowhere" in only(folder).error) == ("nowhere" in words)


def test_a_process_by_itself_does_not_wait_for_others_to_say_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wait(seconds: float) -> None:
        raise AssertionError(f"waits {seconds} s")

    monkeypatch.setattr("lensdist.utils.errors.time.sleep", wait)
    monkeypatch.setenv("LOCAL_RANK", "1")  # a shell inside a job has left it
    tell_error(UserError("no such file"))
    assert capsys.readouterr().err == "error: no such file\n"


def test_a_report_that_finds_no_room_goes_to_the_node_s_own_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F11: the last word of a run that a full disk ends."""
    folder, spare = tmp_path / "full", tmp_path / "spare"
    folder.write_text("not a folder")  # no file can be made in it, whoever we are
    spare.mkdir()
    monkeypatch.setenv(outcome.FOLDER, str(folder))
    monkeypatch.setenv(outcome.SPARE, str(spare))
    outcome.leave("failed", "no room")
    (left,) = outcome.pass_on(spare, folder)
    assert (left.kind, left.error) == ("failed", "no room")
    folder.unlink()
    folder.mkdir()
    assert outcome.pass_on(spare, folder) == []
    assert [word.error for word in outcome.read(folder)] == ["no room"]
