"""Weight files made to harm: nothing of them runs, nothing is allocated on their word."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import resource
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from lensdist.cli import main
from lensdist.utils.errors import UserError
from lensdist.weights import files
from lensdist.weights.files import read_weights
from tests.faults.payload import Payload
from tests.unit.test_weights_pth import legacy

pytestmark = pytest.mark.faults


class Sly(nn.Module):
    """A network with a payload in its attributes."""

    def __init__(self, payload: Payload) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.payload = payload


def refused(path: Path, dest: Path) -> None:
    """By the reader and by the command, which writes nothing."""
    with pytest.raises(UserError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert main(["import", str(path), "--out", str(dest)]) == 2
    assert not dest.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["root", "weight", "beside", "attribute", "key"])
def test_a_payload_is_not_executed(tmp_path: Path, place: str, protocol: int, zipped: bool) -> None:
    marker, path = tmp_path / "executed", tmp_path / "weights.pth"
    payload = Payload(marker)
    value: Any = {
        "root": payload,
        "weight": {"a": torch.rand(2), "b": payload},
        "beside": {"state_dict": {"a": torch.rand(2)}, "more": [payload]},
        "attribute": Sly(payload),
        "key": {"a": torch.rand(2), "model": {payload: 1}},
    }[place]
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with contextlib.suppress(Exception):  # the control: this payload is live
        torch.load(path, weights_only=False)
    assert marker.exists()
    marker.rmdir()
    refused(path, tmp_path / "out")
    assert not marker.exists()


def zip_of(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def tensor(size: bytes, stride: bytes, offset: bytes = b"K\x00", count: bytes = b"K\x04") -> bytes:
    """A state dict of one tensor in a storage of 4 float32 numbers."""
    storage = b"(\x8c\x07storage\x8c\x05torch\x8c\x0cFloatStorage\x93\x8c\x010\x8c\x03cpu%btQ"
    rebuild = b"\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v2\x93"
    parts = (storage.replace(b"%b", count), offset, size, stride, b"\x89}")
    return b"}\x8c\x01a" + rebuild + b"(" + b"".join(parts) + b"tRs"


GOOD = tensor(b"K\x04\x85", b"K\x01\x85")
NUMBERS = torch.arange(4.0)


def file_of(pickled: bytes, zipped: bool, numbers: bytes | None = None) -> bytes:
    pickled = b"\x80\x04" + pickled + b"."
    if not zipped:
        return legacy(pickled, {"0": NUMBERS} if b"FloatStorage" in pickled else {})
    raw = NUMBERS.numpy().tobytes() if numbers is None else numbers
    return zip_of({"x/data.pkl": pickled, "x/data/0": raw, "x/version": b"3\n"})


def test_the_control_is_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    for zipped in (True, False):
        path.write_bytes(file_of(GOOD, zipped))
        assert torch.equal(read_weights(path).tensors["a"], NUMBERS)


ARGUMENTS = GOOD[GOOD.index(b"\x93(") + 1 : -2]  # of the call that makes the tensor
STATE = b"}(\x8c\x0b_parameters" + GOOD + b"\x8c\x08_modules}ub"
HUGE = b"\x8a\x08" + (2**62).to_bytes(8, "little")
MODULE = b"cx\nModule\n)\x81"
EMPTY = b"}(\x8c\x0b_parameters}\x8c\x08_modules"
TWICE = b"q\x010" + MODULE + EMPTY + b"}(\x8c\x01ah\x01\x8c\x01bh\x01uub"
PICKLES = {
    "os.system": b"cos\nsystem\n\x8c\x04true\x85R",
    "posix.system": b"cposix\nsystem\n\x8c\x04true\x85R",
    "eval": b"cbuiltins\neval\n\x8c\x011\x85R",
    "eval of Python 2": b"c__builtin__\neval\n\x8c\x011\x85R",
    "nested eval": b"}\x8c\x01a(cbuiltins\ngetattr\ncbuiltins\n__import__\n\x8c\x02os\x85RtRs",
    "a dotted name": b"\x8c\x05torch\x8c\x0dhub.os.system\x93\x8c\x04true\x85R",
    "a name that is no name": b"\x8c\x05torch\x8c\x04a\nb;\x93",
    "stack_global of numbers": b"K\x01K\x02\x93",
    "stack_global of an object": b"cx\ny\n\x8c\x01z\x93",
    "torch.load": b"ctorch\nload\n\x8c\x01x\x85R",
    "hub": b"ctorch.hub\nload\n\x8c\x01x\x85R",
    "a call of a call": b"cfunctools\npartial\ncos\nsystem\n\x85R)R",
    "a call of an object": b"cx\nY\n)\x81)R",
    "a call that allocates": b"cbuiltins\nbytearray\n" + HUGE + b"\x85R",
    "instance": b"(ios\nsystem\n",
    "object": b"(cos\nsystem\no",
    "newobj_ex": b"cx\nY\n)}\x92",
    "ext": b"\x82\x01",
    "copyreg": b"ccopyreg\n_reconstructor\n(cx\nY\ncbuiltins\nobject\nNtR",
    "a part of a partial": b"cfunctools\nreduce\n)R",
    "build on a name": b"ctorch._utils\n_rebuild_tensor_v2\n}b",
    "build on a number": b"K\x01}b",
    "build on a tensor": GOOD[:-1] + b"}bs",
    "text persistent id": b"Pid\n",
    "persistent id of another kind": b"(\x8c\x06module\x8c\x01xtQ",
    "persistent id of text": b"\x8c\x01xQ",
    "storage without a type": b"(\x8c\x07storage\x8c\x01x\x8c\x010\x8c\x03cpuK\x04tQ",
    "storage with a path": GOOD.replace(b"\x8c\x010", b"\x8c\x05../x0"),
    "storage of another": GOOD.replace(b"\x8c\x010", b"\x8c\x019"),
    "storage with a nested key": GOOD.replace(b"\x8c\x010", b"K\x00\x85"),
    "a type of our own": GOOD.replace(b"\x0cFloatStorage", b"\x0cFakedStorage"),
    "another width": GOOD.replace(b"\x0cFloatStorage", b"\x0bLongStorage"),
    "two types": GOOD + GOOD[1:].replace(b"\x01a", b"\x01b").replace(b"\x0cFloat", b"\x0aInt"),
    "too many numbers": tensor(b"K\x04\x85", b"K\x01\x85", count=b"K\x05"),
    "huge storage": tensor(b"K\x04\x85", b"K\x01\x85", count=HUGE),
    "negative storage": tensor(b"K\x04\x85", b"K\x01\x85", count=b"J\xff\xff\xff\xff"),
    "beyond its numbers": tensor(b"K\x05\x85", b"K\x01\x85"),
    "stride beyond": tensor(b"K\x02\x85", b"K\x04\x85"),
    "offset beyond": tensor(b"K\x04\x85", b"K\x01\x85", offset=b"K\x01"),
    "negative offset": tensor(b"K\x04\x85", b"K\x01\x85", offset=b"J\xff\xff\xff\xff"),
    "negative stride": tensor(b"K\x04\x85", b"J\xff\xff\xff\xff\x85"),
    "negative size": tensor(b"J\xff\xff\xff\xff\x85", b"K\x01\x85"),
    "huge shape": tensor(HUGE + b"\x85", b"K\x01\x85"),
    "huge shape without stride": tensor(b"J\xff\xff\xff\x7f\x85", b"K\x00\x85"),
    "huge empty shape": tensor(b"K\x00" + HUGE + b"\x86", b"K\x01K\x01\x86"),
    "sizes without strides": tensor(b"K\x04\x85", b")"),
    "size of text": tensor(b"\x8c\x014\x85", b"K\x01\x85"),
    "size of truth": tensor(b"\x88\x85", b"K\x01\x85"),
    "many axes": tensor(b"(" + b"K\x01" * 99 + b"t", b"(" + b"K\x01" * 99 + b"t"),
    "a tensor in place of a storage": b"}\x8c\x01actorch._utils\n_rebuild_tensor\n(NNNNtRs",
    "a tensor of another class": b"}\x8c\x01actorch._tensor\n_rebuild_from_type_v2\n("
    b"ctorch._utils\n_rebuild_tensor_v2\ncx\nMine\n" + ARGUMENTS + b"}tRs",
    "a state set twice": b"cx\nModule\n)\x81" + 2 * STATE,
    "a module in itself": MODULE + b"q\x01" + EMPTY + b"}\x8c\x01ah\x01sub",
    "a dictionary in itself": b"}q\x01\x8c\x05modelh\x01s",
    "a state in itself": b"}q\x01\x8c\x01ah\x01s",
    "a list in itself": b"}\x8c\x01a]q\x01h\x01as",
    "60 modules, each twice in the next": MODULE + EMPTY + b"}ub" + TWICE * 60,
    "endless": b"N0" * 5_000_000 + b"N",
    "memo": b"Nr\xff\xff\xff\x7f0h\x05",
    "long text": b"\x8d" + (2**60).to_bytes(8, "little") + b"x",
    "long frame": b"\x95" + (2**60).to_bytes(8, "little") + b"x",
    "long number": b"\x8b\xff\xff\xff\x7fx",
    "nested": b"N" + b"\x85" * 200_000,
    "nested keys": b"}" + b"N" + b"\x85" * 200_000 + b"Ns",
    "marks": b"(" * 100_000,
    "dictionary of odd length": b"}(Nu",
    "dictionary onto a list": b"](NNu",
    "list onto a number": b"K\x01Na",
    "empty stack": b"R",
    "no mark": b"e",
    "no memo": b"h\x05",
    "protocol": b"\x80\x63N",
    "nothing": b"",
}


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("zipped", [True, False])
def test_crafted_pickles_are_refused(tmp_path: Path, name: str, zipped: bool) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(file_of(PICKLES[name], zipped))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    refused(path, tmp_path / "out")
    assert time.monotonic() - start < 300
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


PICKLED = b"\x80\x04" + GOOD + b"."
RAW = NUMBERS.numpy().tobytes()
ZIPS = {
    "deflated": zip_of({"x/data.pkl": PICKLED, "x/data/0": RAW}, zipfile.ZIP_DEFLATED),
    "a bomb": zip_of({"x/data.pkl": PICKLED, "x/data/0": bytes(1 << 24)}, zipfile.ZIP_DEFLATED),
    "lzma": zip_of({"x/data.pkl": PICKLED, "x/data/0": RAW}, zipfile.ZIP_LZMA),
    "no pickle": zip_of({"x/data/0": RAW}),
    "two pickles": zip_of({"x/data.pkl": PICKLED, "y/data.pkl": PICKLED}),
    "no numbers": zip_of({"x/data.pkl": PICKLED}),
    "too few numbers": zip_of({"x/data.pkl": PICKLED, "x/data/0": RAW[:-1]}),
    "too many numbers": zip_of({"x/data.pkl": PICKLED, "x/data/0": RAW + b"x"}),
    "big-endian": zip_of({"x/data.pkl": PICKLED, "x/data/0": RAW, "x/byteorder": b"big"}),
    "empty": zip_of({}),
    "junk": b"PK\x03\x04junk",
}


@pytest.mark.parametrize("name", ZIPS)
def test_odd_archives_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(ZIPS[name])
    refused(path, tmp_path / "out")


def test_archives_that_lie_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, good = tmp_path / "weights.pth", file_of(GOOD, True)
    entry = good.index(b"PK\x01\x02")
    second = good.index(b"PK\x01\x02", entry + 4)
    lies = {
        "encrypted": (entry + 8, b"\x01"),
        "larger": (second + 20, (2**31).to_bytes(4, "little") * 2),
        "elsewhere": (second + 42, (2**31).to_bytes(4, "little")),
        "overlapping": (second + 42, b"\x00\x00\x00\x00"),
        "other numbers": (good.index(RAW), b"\xff"),
    }
    for at, lie in lies.values():
        path.write_bytes(good[:at] + lie + good[at + len(lie) :])
        refused(path, tmp_path / "out")
    stream = io.BytesIO(good)
    with zipfile.ZipFile(stream, "a") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr("x/data/0", bytes(16))
    path.write_bytes(stream.getvalue())
    refused(path, tmp_path / "out")
    monkeypatch.setattr(files._Bounded, "limit", 100)
    path.write_bytes(good)
    with pytest.raises(UserError, match="directory is too long"):
        read_weights(path)


SEEDS = {
    "zip": file_of(GOOD, True),
    "stream": file_of(GOOD, False),
    "safetensors": save({"a": NUMBERS}),
}


@pytest.mark.parametrize("container", SEEDS)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, container: str) -> None:
    path, data = tmp_path / "weights.pth", SEEDS[container]
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(UserError):
            read_weights(path)


def test_streams_that_lie_are_refused(tmp_path: Path) -> None:
    path, good = tmp_path / "weights.pth", file_of(GOOD, False)
    count = len(good) - 16 - 8
    for data in (
        good[:count] + (2**60).to_bytes(8, "little") + good[count + 8 :],
        good[:count] + (-1).to_bytes(8, "little", signed=True) + good[count + 8 :],
        good[:count] + (3).to_bytes(8, "little") + good[count + 8 :],
        good.replace(b"little_endian\x88", b"little_endian\x89").replace(
            b"little_endianq\x02\x88", b"little_endianq\x02\x89"
        ),
        legacy(b"\x80\x04" + GOOD + b".", {"0": NUMBERS, "1": NUMBERS}),
        b"\x80\x02" + b"N0" * 1000,
        pickle.dumps(0x1950A86A20F9469CFC6C, 2),
    ):
        assert data != good
        path.write_bytes(data)
        refused(path, tmp_path / "out")


def test_pipes_devices_and_huge_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    with (tmp_path / "huge.pth").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    for name in ("pipe", "zero", "huge"):
        refused(tmp_path / f"{name}.pth", tmp_path / "out")


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(list(SEEDS.values())), st.data())
def test_any_damage_gives_weights_or_a_sentence(seed: bytes, data: st.DataObject) -> None:
    damaged = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = Path(f"/tmp/lensdist-hostile-{os.getpid()}.pth")
    path.write_bytes(damaged)
    try:
        with contextlib.suppress(UserError):  # and nothing else
            assert all(t.numel() <= 4 for t in read_weights(path).tensors.values())
    finally:
        path.unlink()
