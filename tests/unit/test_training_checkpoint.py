"""Checkpoints: what is read is what was written, or nothing is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lensdist.training import checkpoint
from lensdist.utils.errors import RunError
from lensdist.utils.files import sha256
from lensdist.utils.sealed import seal
from lensdist.utils.tensors import write_safetensors

pytestmark = pytest.mark.unit

META: dict[str, Any] = {"state": {"step": 3, "best": 0.1 + 0.2, "window": [1e-5, 2.0]}, "ü": None}


def every_dtype() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    tensors = {f"f/{k}": torch.randn(3, 5, generator=draw).to(k) for k in kinds}
    for kind in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        tensors[f"i/{kind}"] = torch.randint(0, 100, (7,), generator=draw).to(kind)
    return tensors | {
        "bool": torch.tensor([True, False, True]),
        "0-d": torch.tensor(4.5),
        "0-d bool": torch.tensor(True),
        "empty": torch.empty(0, 3),
        "empty half": torch.empty(2, 0, dtype=torch.bfloat16),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        "strided": torch.arange(12.0).reshape(3, 4).T,
        "slice": torch.arange(10)[2:7],
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        other = b[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, other)]
        assert torch.equal(*bits), name


def test_the_official_library_reads_what_we_write(tmp_path: Path) -> None:
    tensors = every_dtype()
    path = tmp_path / "t.safetensors"
    size, digest = write_safetensors(path, tensors)
    assert size == path.stat().st_size
    assert digest == sha256(path)
    same(tensors, safetensors.torch.load(path.read_bytes()))
    same(tensors, safetensors.torch.load_file(path))
    with safetensors.safe_open(path, framework="pt") as f:
        same(tensors, {name: f.get_tensor(name) for name in f.keys()})  # noqa: SIM118


def test_no_tensors_are_a_file_too(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "t.safetensors", {})
    assert safetensors.torch.load_file(tmp_path / "t.safetensors") == {}


def test_a_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path / "deep" / "checkpoints", 3, every_dtype(), META)
    found = checkpoint.read(path)
    assert (found.step, found.meta, found.path) == (3, META, path)
    same(every_dtype(), found.tensors)


def test_the_newest_is_that_of_the_highest_step_not_of_the_latest_clock(tmp_path: Path) -> None:
    for step in (900, 100_000_001, 20):
        checkpoint.write(tmp_path, step, {"a": torch.tensor(step)}, {})
    found, damaged = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.step, damaged) == (100_000_001, [])
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [20, 900, 100_000_001]


def test_nothing_is_no_error(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "absent") == (None, [])
    assert checkpoint.newest(tmp_path) == (None, [])


def test_junk_in_the_folder_is_passed_over_and_left_alone(tmp_path: Path) -> None:
    for name in ("step-1", "step-0000000x", "step-00000009.bak", "notes", "step-00000007 copy"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000099").write_text("a file, not a folder")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    checkpoint.write(tmp_path, 5, {"a": torch.zeros(1)}, {})
    checkpoint.prune(tmp_path, 5, 1, set())
    found, damaged = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.step, damaged) == (5, [])
    assert len(list(tmp_path.iterdir())) == 8


def test_all_damaged_is_an_error_that_names_the_newest(tmp_path: Path) -> None:
    for step in (1, 2):
        (checkpoint.write(tmp_path, step, {"a": torch.zeros(9)}, {}) / "checkpoint.json").unlink()
    with pytest.raises(RunError, match=r"none of the 2 checkpoints.*step-00000002.*checkpoint"):
        checkpoint.newest(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '"x"', "null", '{"seal": 1}', "\ud800", "{" * 9]
)
def test_a_manifest_that_is_none_is_damage(tmp_path: Path, content: str) -> None:
    path = checkpoint.write(tmp_path, 1, {"a": torch.zeros(9)}, {})
    (path / "checkpoint.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(checkpoint.Damaged, match=r"checkpoint\.json"):
        checkpoint.read(path)


def test_another_format_is_told_from_damage(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, 1, {}, {})
    manifest = json.loads((path / "checkpoint.json").read_text())
    del manifest["seal"]
    manifest["format"] = 99
    manifest["seal"] = seal(manifest)
    (path / "checkpoint.json").write_text(json.dumps(manifest))
    with pytest.raises(checkpoint.Damaged, match="format 99 is not 1"):
        checkpoint.read(path)


def test_a_step_written_again_replaces_the_old_one(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        path = checkpoint.write(tmp_path, 4, {"a": torch.tensor(value)}, {})
    assert float(checkpoint.read(path).tensors["a"]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000004"]


def test_what_killed_lives_left_is_swept(tmp_path: Path) -> None:
    for name in (".step-00000004.1.tmp", ".step-00000002.77.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.safetensors").write_bytes(b"half")
    checkpoint.write(tmp_path, 5, {}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]


def kept(root: Path) -> list[int]:
    return [step for step, _ in checkpoint.steps(root)]


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 7):
        checkpoint.write(tmp_path, step, {}, {})
    checkpoint.prune(tmp_path, 6, 2, {2})
    assert kept(tmp_path) == [2, 5, 6]
    checkpoint.prune(tmp_path, 6, 1, {2, 40})
    assert kept(tmp_path) == [2, 6]


def test_prune_does_not_count_what_the_run_was_resumed_before(tmp_path: Path) -> None:
    for step in (10, 15, 20, 30):  # 20 and 30 of a life that was given up; 15 was just written
        checkpoint.write(tmp_path, step, {}, {})
    checkpoint.prune(tmp_path, 15, 1, {10})
    assert kept(tmp_path) == [10, 15]
