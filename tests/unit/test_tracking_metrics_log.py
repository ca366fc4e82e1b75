"""The metrics file: rows that survive crashes, full disks and resumes."""

import json
import math
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lensdist.tracking import metrics_log
from lensdist.tracking.metrics_log import MetricsLog


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    with closing(MetricsLog(path)) as rows:
        row = rows.append(1, "train", loss=torch.tensor(0.5), lr=np.float32(0.25), ok=True)
        assert metrics_log.read(path) == [row]  # there at once, before any sync
        rows.append(2, "event", what="saved", at=None)
    assert row == {"step": 1, "kind": "train", "loss": 0.5, "lr": 0.25, "ok": True}
    assert metrics_log.read(path)[1] == {"step": 2, "kind": "event", "what": "saved", "at": None}


def test_nan_is_null_and_named(tmp_path: Path) -> None:
    with closing(MetricsLog(tmp_path / "m")) as rows:
        rows.append(1, "train", loss=math.nan, grad=torch.tensor(math.inf), lr=1.0)
    text = (tmp_path / "m").read_text()
    assert "NaN" not in text
    assert json.loads(text) == {
        "step": 1, "kind": "train", "loss": None, "grad": None, "lr": 1.0,
        "nonfinite": "loss grad",
    }  # fmt: skip


def test_a_row_is_flat(tmp_path: Path) -> None:
    with closing(MetricsLog(tmp_path / "m")) as rows:
        with pytest.raises(TypeError, match="flat, but losses"):
            rows.append(1, "train", losses=[1.0, 2.0])
        rows.append(2, "train")
    assert [row["step"] for row in metrics_log.read(tmp_path / "m")] == [2]


def test_rewind_drops_what_will_be_made_again(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with closing(MetricsLog(path)) as rows:
        for step in range(1, 6):
            rows.append(step, "train", loss=1 / step)
    straight = path.read_bytes()
    with path.open("a") as file:
        file.write('{"step": 6, "loss": 0.')
    assert len(metrics_log.read(path)) == 5  # a killed process has left the last line in part
    assert metrics_log.rewind(path, 3) == 2
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    with closing(MetricsLog(path)) as rows:
        for step in (4, 5):
            rows.append(step, "train", loss=1 / step)
    assert path.read_bytes() == straight
    assert os.listdir(tmp_path) == ["m"]


def test_rewind_of_nothing(tmp_path: Path) -> None:
    assert metrics_log.rewind(tmp_path / "m", 3) == 0
    assert metrics_log.read(tmp_path / "m") == []
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("bad", [b"\x00\xff\n", b"[1]\n", b"{}\n", b'{"step": "x"}\n'])
def test_a_damaged_line_is_named_and_left_out(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "m"
    path.write_bytes(b'{"step": 1}\n' + bad + b'{"step": 2}\n')
    with pytest.warns(UserWarning, match="m:2 is damaged"):
        assert [row["step"] for row in metrics_log.read(path)] == [1, 2]
    with pytest.warns(UserWarning, match="m:2 is damaged"):
        metrics_log.rewind(path, 2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


class FullDisk:
    """Takes a few bytes, then none until it is given room."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        n = self.file.write(bytes(data[: self.room]))
        self.room -= n
        return int(n)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_full_disk_loses_no_row_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = MetricsLog(tmp_path / "m")
    disk = FullDisk(rows._file, room=40)
    rows._file = disk  # type: ignore[assignment]
    for step in range(10):
        rows.append(step, "train")
    assert capsys.readouterr().err.count("No space left") == 1
    disk.room = 10_000
    rows.append(10, "train")
    rows.close()
    assert [row["step"] for row in metrics_log.read(tmp_path / "m")] == list(range(11))


def test_a_disk_that_stays_full_costs_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_log, "_HELD", 1000)
    rows = MetricsLog(tmp_path / "m")
    disk = FullDisk(rows._file, room=40)
    rows._file = disk  # type: ignore[assignment]
    for step in range(1000):
        rows.append(step, "train")
        assert len(rows._held) <= 1100
    disk.room = 10**6
    rows.close()
    steps = [row["step"] for row in metrics_log.read(tmp_path / "m")]
    assert steps[:2] == [0, 1]
    assert steps[-1] == 999
    assert steps == sorted(set(steps))
