"""A checkpoint to which each process writes its share: whole, or passed over."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lensdist.distributed.shares import nth, span
from lensdist.training import checkpoint, shares
from lensdist.training.async_saver import Saver
from lensdist.training.shares import Together
from lensdist.utils.sealed import seal
from lensdist.utils.stored import elements, wholes

pytestmark = pytest.mark.unit
SIZE = 4


def state(step: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(step)
    return {
        "model/w": torch.randn(7, 5, generator=draw),
        "model/short": torch.randn(3, 2, generator=draw).bfloat16(),
        "model/none": torch.empty(0, 4),
        "optim/w/step": torch.tensor(float(step)),
    }


class Processes:
    """Four processes, played by threads, that save together."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        monkeypatch.setattr(shares, "_get_default_store", lambda: store)
        self.reports: list[tuple[int, str]] = []
        self.told: dict[int, Any] = {}
        self.ready = threading.Barrier(SIZE)
        self.together = [Together(self._world(rank)) for rank in range(SIZE)]
        self.savers = [
            Saver(root, 2, True, lambda *words: self.reports.append(words), each)
            for each in self.together
        ]

    def _world(self, rank: int) -> Any:
        def from_main(value: Any) -> Any:
            if rank == 0:
                self.told[0] = value
            self.ready.wait(10)
            return self.told[0]

        return SimpleNamespace(rank=rank, size=SIZE, main=rank == 0, from_main=from_main)

    def save(self, step: int) -> list[bool]:
        """Save, and return which processes' saves have succeeded."""
        done = [False] * SIZE

        def process(rank: int) -> None:
            mine = {name: nth(value, rank, SIZE) for name, value in state(step).items()}
            mine = {k: v for k, v in mine.items() if v.values.numel() or rank == 0}
            self.savers[rank].save_shares(step, mine, {"step": step}, set())
            done[rank] = self.savers[rank].wait()

        threads = [threading.Thread(target=process, args=(rank,)) for rank in range(SIZE)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(20)
        return done


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Processes:
    found = Processes(tmp_path, monkeypatch)
    for step in (10, 20):
        assert found.save(step) == [True] * SIZE
    return found


def same(found: dict[str, Tensor], step: int) -> bool:
    wanted = state(step)
    return found.keys() == wanted.keys() and all(
        torch.equal(found[k], v) for k, v in wanted.items()
    )


def test_any_process_reads_all_or_any_part(processes: Processes, tmp_path: Path) -> None:
    folder = tmp_path / "step-00000020"
    assert len(list(folder.glob("state-*-of-00004.safetensors"))) == SIZE
    assert same(checkpoint.read(folder).tensors, 20)
    lazy = checkpoint.read(folder, lazy=True).tensors
    shutil.rmtree(folder)  # its files stay open
    assert same(wholes(lazy), 20)
    for size in (1, 2, 3, 50):  # by another number of processes
        parts = [elements(lazy["model/w"], *span(35, rank, size)) for rank in range(size)]
        assert torch.equal(torch.cat(parts), state(20)["model/w"].flatten())


@pytest.mark.parametrize("among", [1, SIZE])
def test_each_process_verifies_its_files_and_all_agree(
    processes: Processes, tmp_path: Path, among: int
) -> None:
    path = tmp_path / "step-00000020" / "state-00002-of-00004.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    said: list[str | None] = []
    for rank in range(among):
        world: Any = SimpleNamespace(rank=rank, size=among, first=lambda p: said.append(p) or p)
        if rank == 2 or among == 1:
            with pytest.raises(checkpoint.Damaged, match=r"state-00002.*altered"):
                checkpoint.read(tmp_path / "step-00000020", lazy=True, world=world)
        else:  # `first` would tell it
            checkpoint.read(tmp_path / "step-00000020", lazy=True, world=world)
    assert [p is not None for p in said] == [rank == 2 or among == 1 for rank in range(among)]


def _swap(folder: Path) -> None:
    a, b = (folder / name for name in shares.file_names(SIZE)[:2])
    a.rename(folder / "c")
    b.rename(a)
    (folder / "c").rename(b)


def _index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change a manifest, and seal it as whoever knows how could do."""

    def forge(folder: Path) -> None:
        manifest = json.loads((folder / "checkpoint.json").read_text())
        del manifest["seal"]
        change(manifest)
        text = json.dumps({**manifest, "seal": seal(manifest)})
        (folder / "checkpoint.json").write_text(text)

    return forge


def _parts(name: str, parts: Any) -> Callable[[Path], None]:
    return _index(lambda manifest: manifest["tensors"][name].update(parts=parts))


HARM: dict[str, Callable[[Path], object]] = {
    "missing": lambda f: (f / shares.file_names(SIZE)[3]).unlink(),
    "no file": lambda f: (f / shares.file_names(SIZE)[1]).write_bytes(b""),
    "swapped": _swap,
    "of another step": lambda f: shutil.copy(
        f.parent / "step-00000010" / shares.file_names(SIZE)[1], f
    ),
    "a part twice": _parts("model/w", [[0, 0], [0, 9], [2, 18], [3, 27]]),
    "a part less": _parts("model/w", [[0, 0], [1, 9], [2, 18]]),
    "no parts": _parts("model/w", []),
    "a file that is not there": _parts("model/w", [[0, 0], [1, 9], [2, 18], [-1, 27]]),
    "another shape": _index(lambda m: m["tensors"]["model/w"].update(shape=[7, 6])),
    "a tensor less": _index(lambda m: m["tensors"].pop("model/w")),
    "a file elsewhere": _index(
        lambda m: m["files"].update({"../x.safetensors": m["files"].popitem()[1]})
    ),
    "no index": _index(lambda m: m.pop("tensors")),
    "no files": _index(lambda m: m.update(files={})),
}


@pytest.mark.parametrize("harm", HARM)
def test_what_is_not_whole_is_passed_over(processes: Processes, tmp_path: Path, harm: str) -> None:
    HARM[harm](tmp_path / "step-00000020")
    found, damaged = checkpoint.newest(tmp_path)
    assert found is not None
    assert len(damaged) == 1
    assert same(found.tensors, 10)


@pytest.mark.parametrize("dead", [False, True])
def test_a_share_that_is_not_written_leaves_the_checkpoints_before(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead: bool
) -> None:
    write = shares.write_safetensors

    def full(path: Path, tensors: Any) -> Any:
        if "state-00003" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, tensors)

    silent: Any = SimpleNamespace(set=lambda *words: None)
    with monkeypatch.context() as patch:
        patch.setattr(shares, "write_safetensors", full)
        if dead:
            patch.setattr(processes.together[3], "_store", silent)
            patch.setattr(processes.together[0], "patience", 0.1)
        assert processes.save(30) == [False, True, True, False]
    why = "has not written its share" if dead else "No space left on device"
    assert any(f"process 3{'' if dead else ':'} {why}" in said for _, said in processes.reports)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000020"]
    assert processes.save(40) == [True] * SIZE
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [20, 40]


def test_weights_that_are_not_finite_are_passed_over(processes: Processes, tmp_path: Path) -> None:
    bad = torch.full((7, 5), torch.nan)
    checkpoint.write(tmp_path, 30, {"model/w": bad, "optim/x": bad}, {})
    with pytest.raises(checkpoint.Damaged, match="model/w holds NaN"):
        checkpoint.read(tmp_path / "step-00000030")
