"""Whatever trackers do, training goes on at full speed."""

import json
import os
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lensdist.tracking import trackers
from lensdist.tracking.trackers import Trackers


class FakeWandb(types.ModuleType):
    """wandb as far as it is used, which can be told to misbehave at any call."""

    class Settings:
        def __init__(self, **settings: Any) -> None:
            assert (settings["console"], settings["save_code"]) == ("off", False)

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.finished = False
        self.trouble: dict[str, Callable[[], Any]] = {}

    def init(self, **options: Any) -> "FakeWandb":
        self.inits.append(options)
        self._maybe("init")
        return self

    def define_metric(self, *_: str, **__: str) -> None:
        pass

    def log(self, values: dict[str, Any]) -> None:
        self._maybe("log")
        self.logged.append(values)

    def teardown(self) -> None:
        pass

    def finish(self) -> None:
        self._maybe("finish")
        self.finished = True

    def _maybe(self, call: str) -> None:
        self.trouble.get(call, lambda: None)()


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    for name in (
        "SILENT",
        "CACHE_DIR",
        "DATA_DIR",
        "ERROR_REPORTING",
    ):  # so that what trackers set is undone
        monkeypatch.setenv(f"WANDB_{name}", "x")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def hang() -> Iterator[Callable[[], Any]]:
    """Blocks until the test is over."""
    over = threading.Event()
    yield over.wait
    over.set()


def raiser(error: BaseException) -> Callable[[], Any]:
    def go() -> None:
        raise error

    return go


def row(step: int, kind: str = "train", **values: Any) -> dict[str, Any]:
    return {"step": step, "kind": kind, **values}


def test_wandb_reports_no_errors_to_its_makers(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its service looks for a server of theirs as it starts, offline too."""
    found = []
    monkeypatch.delenv("WANDB_ERROR_REPORTING")
    wandb.trouble["init"] = lambda: found.append(os.environ.get("WANDB_ERROR_REPORTING"))
    Trackers(tmp_path / "run", "offline").close()
    assert found == ["false"]


def test_rows_arrive_in_order_with_their_kind(tmp_path: Path, wandb: FakeWandb) -> None:
    tracker = Trackers(tmp_path / "run7", "offline", "lenses", False, {"seed": 3})
    tracker.log(row(1, loss=0.5, lr=None, ok=True, nonfinite="lr"))
    tracker.log(row(2, "val", accuracy=0.75, n=12))
    tracker.close()
    assert wandb.logged == [
        {"step": 1, "train/loss": 0.5},
        {"step": 2, "val/accuracy": 0.75, "val/n": 12},
    ]
    assert wandb.finished
    options = wandb.inits[0]
    assert (options["project"], options["name"], options["mode"]) == ("lenses", "run7", "offline")
    assert options["config"] == {"seed": 3}
    assert options["dir"] == tmp_path / "run7"


def test_a_resumed_run_keeps_its_id(tmp_path: Path, wandb: FakeWandb) -> None:
    for _ in range(2):
        Trackers(tmp_path, "offline").close()
    first, second = wandb.inits
    assert json.loads((tmp_path / "track.json").read_text()) == {"wandb_id": first["id"]}
    assert second["id"] == first["id"]
    assert first["resume"] == "allow"
    (tmp_path / "track.json").write_text("{torn")
    Trackers(tmp_path, "offline").close()
    assert wandb.inits[2]["id"] not in ("", first["id"])


def test_wandbs_own_variables_name_project_run_and_id(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "subhalos")
    monkeypatch.setenv("WANDB_NAME", "wide")
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    monkeypatch.setenv("WANDB_DIR", "/elsewhere")
    for project in (None, "lenses"):  # what the run itself says comes first
        Trackers(tmp_path / "a", "offline", project).close()
    found = [(one["project"], one["name"], one["id"]) for one in wandb.inits]
    assert found == [("subhalos", "wide", "abc123"), ("lenses", "wide", "abc123")]
    assert "WANDB_DIR is not used" in capsys.readouterr().err
    monkeypatch.setenv("WANDB_RUN_ID", "another")  # a run that was begun keeps its own
    Trackers(tmp_path / "a", "offline").close()
    assert wandb.inits[2]["id"] == "abc123"


@pytest.mark.parametrize("call", ["init", "log", "finish"])
@pytest.mark.parametrize("error", [RuntimeError("no\nnetwork"), SystemExit(1), None])
def test_an_error_or_a_hang_is_one_line_and_the_end_of_the_tracker(
    tmp_path: Path, wandb: FakeWandb, capsys: Any, call: str, error: BaseException | None,
    hang: Callable[[], Any],
) -> None:  # fmt: skip
    wandb.trouble[call] = raiser(error) if error else hang
    tracker = Trackers(tmp_path, "offline", queue=100)
    began = time.perf_counter()
    for step in range(1000):
        tracker.log(row(step, loss=1.0))
    assert time.perf_counter() - began < 5
    tracker.close(timeout=30 if error else 0.2)
    (line,) = capsys.readouterr().err.splitlines()
    told = f"wandb is off: {type(error).__name__}" if error else "wandb has not finished in 0 s"
    assert line.startswith(told)


def test_a_slow_tracker_loses_the_oldest_rows_and_says_how_many(
    tmp_path: Path, wandb: FakeWandb, capsys: Any
) -> None:
    ready = threading.Event()
    wandb.trouble["init"] = ready.wait
    tracker = Trackers(tmp_path, "offline", queue=100)
    for step in range(1000):
        tracker.log(row(step, loss=1.0))
    ready.set()
    tracker.close()
    assert [each["step"] for each in wandb.logged] == list(range(900, 1000))
    assert "too slow for 900 of 1000 rows" in capsys.readouterr().err


def test_one_broken_tracker_leaves_the_other(tmp_path: Path, wandb: FakeWandb) -> None:
    wandb.trouble["init"] = raiser(RuntimeError("no"))
    tracker = Trackers(tmp_path, "offline", tensorboard=True)
    tracker.log(row(1, loss=0.5))
    tracker.close()
    assert scalars(tmp_path)["train/loss"] == [(1, 0.5)]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_forgets_what_a_resume_makes_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    first = Trackers(tmp_path, tensorboard=True)
    for step in range(1, 6):
        first.log(row(step, loss=float(step)))
    first.close()
    time.sleep(1.1)  # event files are ordered by the second in their names
    again = Trackers(tmp_path, tensorboard=True, resumed_step=3)
    for step in range(4, 7):
        again.log(row(step, loss=float(step)))
    again.close()
    assert scalars(tmp_path)["train/loss"] == [(step, float(step)) for step in range(1, 7)]


def test_missing_tensorboard_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    Trackers(tmp_path, tensorboard=True).close()
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "pip install 'lensdist[tensorboard]'" in err


def test_online_without_a_network_goes_on_offline(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x")

    def unreachable() -> None:
        if wandb.inits[-1]["mode"] == "online":
            raise ConnectionError("no route to host")

    wandb.trouble["init"] = unreachable
    tracker = Trackers(tmp_path, "auto")
    tracker.log(row(1, loss=1.0))
    tracker.close()
    assert [each["mode"] for each in wandb.inits] == ["online", "offline"]
    assert len(wandb.logged) == 1
    assert "continues offline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mode", "env", "netrc", "found"),
    [
        ("off", {"WANDB_API_KEY": "k"}, "", "off"),
        ("auto", {}, "", "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "", "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "", "offline"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, "", "off"),
        ("auto", {}, "machine api.wandb.ai login user password k", "online"),
        ("auto", {}, "machine github.com login user password k", "offline"),
        ("auto", {}, "not a netrc", "offline"),
        ("auto", {"WANDB_BASE_URL": "https://x.edu"}, "machine x.edu login a password k", "online"),
        ("online", {}, "", "offline"),
        ("online", {"WANDB_API_KEY": "k"}, "", "online"),
        ("offline", {"WANDB_API_KEY": "k"}, "", "offline"),
    ],
)
def test_modes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: trackers.Mode, env: dict[str, str],
    netrc: str, found: str,
) -> None:  # fmt: skip
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    if netrc:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / ".netrc").write_text(netrc + "\n")
    assert trackers._resolve(mode) == found


def test_log_costs_the_training_thread_next_to_nothing(tmp_path: Path, wandb: FakeWandb) -> None:
    tracker = Trackers(tmp_path, "offline")
    each = row(1, loss=1.0, lr=1e-4, images_per_s=1234.5)
    costs = []
    for _ in range(20):  # the best of some: the machine does other things as well
        began = time.perf_counter()
        for _ in range(100):
            tracker.log(each)
        costs.append((time.perf_counter() - began) / 100)
        time.sleep(0.005)
    tracker.close()
    assert min(costs) < 10e-6


def test_real_wandb_offline_stays_in_the_run(tmp_path: Path) -> None:
    """In a process of its own, since wandb leaves a service and hooks behind."""
    pytest.importorskip("wandb")
    code = (
        "from pathlib import Path\n"
        "from lensdist.tracking.trackers import Trackers\n"
        "for life in range(2):\n"
        "    t = Trackers(Path('run'), 'auto', 'p', False, {'seed': 3, 'path': Path('x')})\n"
        "    for i in range(10): t.log({'step': i, 'kind': 'train', 'loss': 1.0})\n"
        "    t.close()\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True,
        timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    known = json.loads((tmp_path / "run" / "track.json").read_text())["wandb_id"]
    written = list(tmp_path.glob(f"run/wandb/offline-run-*/run-{known}.wandb"))
    assert written
    assert all(file.stat().st_size > 500 for file in written)
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and tmp_path / "run" not in p.parents]
    assert outside == []
