"""What a launcher has set, and what a shell inside a job has left of it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import DistStoreError

from lensdist import train
from lensdist.distributed import rendezvous
from lensdist.utils import errors, launched
from lensdist.utils.errors import UserError
from tests.conftest import settings

pytestmark = pytest.mark.unit

ALL = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
ALL |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ALL:
        monkeypatch.delenv(name, raising=False)
    yield
    errors.set_rank(0)


def test_what_a_launcher_sets_is_believed() -> None:
    assert launched.rank_of({**ALL}) == 1
    assert launched.rank_of({}) == 0


@pytest.mark.parametrize(
    "left",
    [{"WORLD_SIZE": "1"}, {"RANK": "0"}, {"LOCAL_RANK": "0"}, {"RANK": "0", "WORLD_SIZE": "1"}],
)
def test_what_means_one_process_is_taken_away(left: dict[str, str]) -> None:
    environment = {**left, "PMI_SIZE": "1"}
    assert launched.rank_of(environment) == 0
    assert environment == {"PMI_SIZE": "1"}


@pytest.mark.parametrize(
    ("left", "why"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK and MASTER_ADDR and MASTER_PORT missing"),
        ({"RANK": "1"}, "missing"),
        ({"LOCAL_RANK": "3"}, "missing"),
        ({"WORLD_SIZE": "2"}, "missing"),
        ({**ALL, "RANK": "4"}, "contradict"),
        ({**ALL, "LOCAL_RANK": "2"}, "contradict"),
        ({**ALL, "RANK": "one"}, "RANK=one is not a number"),
        ({**ALL, "WORLD_SIZE": "-2"}, "WORLD_SIZE=-2 is not a number"),
        ({**ALL, "MASTER_PORT": "x"}, "MASTER_PORT=x is not a port"),
        ({**ALL, "MASTER_PORT": "70000"}, "is not a port"),
    ],
)
def test_what_contradicts_itself_is_named(left: dict[str, str], why: str) -> None:
    with pytest.raises(UserError, match=why) as told:
        launched.rank_of({**left})
    assert all(f"{name}={text}" in str(told.value) for name, text in left.items())
    assert f"`unset {next(iter(left))}" in str(told.value)


def test_a_run_says_what_a_shell_has_left_and_not_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train.main(settings("mae", tmp_path, tmp_path / "run")) == 2
    told = capsys.readouterr().err
    assert "`unset RANK WORLD_SIZE`" in told
    assert "precision" not in told
    assert errors.process() == (0, 1)  # other commands are alone, whatever a shell has left


# ---- meeting


def _environment(monkeypatch: pytest.MonkeyPatch, port: int, rank: int, size: int) -> None:
    given = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    for name, value in {**given, "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("rank", "size", "error", "said"),
    [
        (0, 3, "process 1, 2 of 3 did not come.*unset RANK", "waiting for process 1, 2 of 3"),
        (1, 2, "process 0 of 2 at 127.0.0.1, port PORT", "waiting for process 0"),
    ],
)
def test_a_process_that_does_not_come_is_named(
    rank: int, size: int, error: str, said: str, port: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.5)
    monkeypatch.setattr(rendezvous, "_SOON", 0.1)
    _environment(monkeypatch, port, rank, size)
    with pytest.raises(DistStoreError, match=error.replace("PORT", str(port))):
        rendezvous.meet()
    assert said in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _environment(monkeypatch, port, 0, 2)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(UserError, match=f"port {port}"):
        rendezvous.meet()


@pytest.mark.parametrize(
    ("host", "open_at"),
    [("127.0.0.1", "127.0.0.1"), ("localhost", "::"), ("192.0.2.1", "::")],
)
def test_a_store_is_open_at_one_address_where_others_know_it(
    host: str, open_at: str, port: int
) -> None:
    """`localhost` is another machine elsewhere; 192.0.2.1 is not this one's, as a container's."""
    with rendezvous._socket(host, port) as listener:
        assert listener.getsockname()[:2] == (open_at, port)
