"""Weight files made to cost: time and memory are bounded, with the reason."""

from __future__ import annotations

import io
import resource
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lensdist.cli import main
from tests.faults.test_hostile_pth import GOOD, file_of

pytestmark = pytest.mark.faults


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def view(size: tuple[int, ...], stride: tuple[int, ...], count: int = 4) -> bytes:
    """A tensor in storage 0, of `count` float32 numbers."""
    number = [b"\x8a\x08" + n.to_bytes(8, "little") for n in (count, *size, *stride)]
    storage = b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpu" + number[0] + b"tQ"
    sizes, strides = number[1 : len(size) + 1], number[len(size) + 1 :]
    shape = b"(" + b"".join(sizes) + b"t(" + b"".join(strides) + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + shape + b"\x89}tR"


def dictionary(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


ONE = view((1,), (1,))
MATRIX = view((1, 1), (0, 0))


def resnets(n: int, odd: bytes) -> dict[str, bytes]:
    """By their names and two shapes, as many resnet18; `odd` is in the place of most weights."""
    blocks = [f"layer{i}.{k}" for i in range(1, 5) for k in range(2)]
    names = ["conv1.weight", "fc.weight", *(f"{b}.conv{k}.weight" for b in blocks for k in (1, 2))]
    shapes = {"layer1.0.conv2.weight": view((64, 64), (0, 0)), "fc.weight": MATRIX}
    shapes["conv1.weight"] = view((1, 3, 1, 1), (0,) * 4)
    return {f"m{i}.{name}": shapes.get(name, odd) for i in range(n) for name in names}


def long_directory() -> bytes:
    stream = io.BytesIO(file_of(GOOD, True))
    with zipfile.ZipFile(stream, "a") as archive:
        for k in range(80):
            entry = zipfile.ZipInfo(f"x/more{k}")
            entry.extra = b"\x07\x07\x00\x00" * 16_000
            archive.writestr(entry, b"")
    return stream.getvalue()


HEAD = {f"fc.{k}.weight": MATRIX for k in range(100)}
COSTS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "strides of 0": ("far more numbers", lambda: file_of(
        dictionary({f"a{k}": view((1 << 20,), (0,)) for k in range(300)}), True)),
    "a network of strides of 0": ("far more numbers", lambda: file_of(
        dictionary(resnets(1, view((512, 512, 3, 3), (0,) * 4))), True)),
    "views of one storage": ("far more numbers", lambda: file_of(
        dictionary({f"a{k}": view((1 << 16,), (1,), 1 << 16) for k in range(400)}), True,
        bytes(1 << 18))),
    "names of one tensor": ("more than 50,000", lambda: file_of(
        b"}" + text("a") + ONE + b"q\x01s("
        + b"".join(text(f"b{k}") + b"h\x01" for k in range(50_000)) + b"u", True)),
    "networks": ("20 networks", lambda: file_of(dictionary(resnets(20, ONE)), True)),
    "networks of nothing": ("hold no numbers", lambda: file_of(
        dictionary(resnets(10, view((0, 1 << 39), (0, 0)))), True)),
    "layers of a head": ("more than 32", lambda: file_of(
        dictionary({k[3:]: v for k, v in resnets(1, ONE).items() if "fc" not in k} | HEAD), True)),
    "a long name": ("impossible name", lambda: file_of(
        text("x" * 3_000_000) + b"q\x01" + b"h\x01\x930" * 1000 + b"N", True)),
    "a call of many": ("with 101 arguments", lambda: file_of(
        b"ctorch\nSize\n(" + b"N" * 101 + b"tR", True)),
    "colliding keys": ("keys are not names", lambda: file_of(
        b"}\x8a\x09" + (2**61 - 1 << 8).to_bytes(9, "little") + b"Ns", True)),
    "a long pickle": ("too long", lambda: file_of(b"N0" * 5_000_000 + b"N", True)),
    "a long directory": ("too long", long_directory),
}  # fmt: skip


@pytest.mark.parametrize("name", COSTS)
def test_costs_are_bounded_with_the_reason(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    why, make = COSTS[name]
    path = tmp_path / "weights.pth"
    path.write_bytes(make())
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert main(["import", str(path), "--out", str(tmp_path / "out")]) == 2
    assert time.monotonic() - start < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    sentence = capsys.readouterr().err
    assert why in sentence
    assert len(sentence.splitlines()) == 1
    assert not (tmp_path / "out").exists()
