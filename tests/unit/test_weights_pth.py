"""Weight files: what `torch.save` or safetensors wrote is read to the bit, without `torch.load`."""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lensdist.utils.errors import UserError
from lensdist.weights.files import WeightFile, _tensor, read_weights
from lensdist.weights.unpickling import BadPickle, Global, Reader, Storage, Strided

pytestmark = pytest.mark.unit

ZIP = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def saved(folder: Path, value: Any, zipped: bool = True, **more: Any) -> WeightFile:
    path = folder / "weights.pth"
    torch.save(value, path, _use_new_zipfile_serialization=zipped, **more)
    return read_weights(path)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert torch.equal(found[name], value.detach())
        assert not found[name].requires_grad


class Tied(nn.Module):
    """Shared weights, views, a buffer that is not saved, None entries and a function."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight
        self.again = self.embed
        both = torch.arange(24.0)
        self.register_buffer("left", both[:12].view(3, 4))
        self.register_buffer("turned", both.view(4, 6).t())
        self.register_buffer("scratch", torch.zeros(99), persistent=False)
        self.register_buffer("nothing", None)
        self.norm = nn.BatchNorm1d(4)
        self.none: nn.Module | None = None
        self.register_module("absent", None)
        self.activation = torch.nn.functional.relu
        self.kind = nn.Conv2d
        self.layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, 8), 2, enable_nested_tensor=False
        )


@ZIP
def test_a_state_dict_is_that_of_torch_load(tmp_path: Path, zipped: bool) -> None:
    state = Tied().state_dict()
    found = saved(tmp_path, state, zipped)
    assert_same(found.tensors, torch.load(tmp_path / "weights.pth"))
    assert (found.kind, found.classes, found.beside) == ("state_dict", (), ())


@ZIP
def test_a_whole_module_gives_its_state_dict(tmp_path: Path, zipped: bool) -> None:
    model = Tied()
    found = saved(tmp_path, model, zipped)
    assert_same(found.tensors, model.state_dict())
    assert found.kind == "module"
    assert f"{__name__}.Tied" in found.classes
    assert "torch.nn.modules.batchnorm.BatchNorm1d" in found.classes
    shared = [found.tensors[name].data_ptr() for name in ("embed.weight", "out.weight")]
    assert shared[0] == shared[1]


def test_a_module_whose_class_exists_nowhere_is_read(tmp_path: Path) -> None:
    model = Tied()
    saved(tmp_path, model, zipped=False)  # a zip's CRC would notice what follows
    path, mine = tmp_path / "weights.pth", __name__.encode()
    other = b"m" * len(mine)
    path.write_bytes(path.read_bytes().replace(mine, other))
    with pytest.raises(ModuleNotFoundError):
        torch.load(path, weights_only=False)
    found = read_weights(path)
    assert f"{other.decode()}.Tied" in found.classes
    assert_same(found.tensors, model.state_dict())


DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"]


@ZIP
def test_every_type_and_layout(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(24)
    state = {d: base.to(getattr(torch, d)).view(2, 3, 4) for d in DTYPES}
    state["bool"] = base % 2 == 0
    state["turned"] = base.float().view(4, 6).t()
    state["strided"] = base.float()[3::2]
    state["expanded"] = torch.arange(3.0)[:, None].expand(3, 5)
    state["channels_last"] = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state["scalar"] = torch.tensor(7)
    state["empty"] = torch.zeros(0, 3)
    state["whole"], state["part"] = base, base[20:]
    found = saved(tmp_path, state, zipped).tensors
    assert_same(found, state)
    assert found["turned"].stride() == state["turned"].stride()


def test_a_tensor_stays_within_its_part_of_a_storage() -> None:
    numbers = torch.arange(6.0).numpy().tobytes()

    def read(size: int) -> Tensor:
        part = Storage("FloatStorage", "0", whole=6, start=2, count=3)
        return _tensor("w", Strided(part, 0, (size,), (1,)), lambda *_: bytearray(numbers), {})

    assert read(3).tolist() == [2, 3, 4]
    with pytest.raises(BadPickle, match="beyond its numbers"):
        read(4)
    beyond = ("storage", Global("torch.FloatStorage"), "0", "cpu", 6, ("part", 4, 3))
    with pytest.raises(BadPickle, match="two types or sizes"):
        Reader(io.BytesIO()).persistent_load(beyond)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@ZIP
def test_every_protocol(tmp_path: Path, protocol: int, zipped: bool) -> None:
    model = Tied()
    assert_same(saved(tmp_path, model, zipped, pickle_protocol=protocol).tensors,
                model.state_dict())  # fmt: skip


@ZIP
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_checkpoints_of_training_loops(tmp_path: Path, key: str, zipped: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    checkpoint = {
        key: model.state_dict(),
        "epoch": 14,
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5]).state_dict(),
        "accuracy": np.float64(0.9592),
        "args": argparse.Namespace(lr=1e-4, where=Path("x")),
        "history": collections.defaultdict(list, loss=[0.5]),
        "device": torch.device("cpu"),
    }
    found = saved(tmp_path, checkpoint, zipped)
    assert_same(found.tensors, model.state_dict())
    assert found.beside == tuple(sorted(checkpoint.keys() - {key}))
    found = saved(tmp_path, {key: model, "epoch": 1}, zipped)
    assert_same(found.tensors, model.state_dict())
    assert found.kind == "module"


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path, prefix: str) -> None:
    state = nn.Linear(3, 2).state_dict()
    wrapped = {prefix + name: value for name, value in state.items()}
    assert_same(saved(tmp_path, wrapped).tensors, state)
    network = nn.Linear(3, 2)
    assert_same(saved(tmp_path, nn.DataParallel(network)).tensors, network.state_dict())


def test_parameters_and_attributes_of_tensors(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.rand(3))
    parameter.lr_scale = 0.1  # type: ignore[attr-defined]
    marked = torch.rand(2)
    marked.note = "x"  # type: ignore[attr-defined]
    state = {"a": parameter, "b": marked, "c": nn.Parameter(torch.rand(2))}
    assert_same(saved(tmp_path, state).tensors, state)


class _Old:
    """Something that is pickled by a recipe of our own."""

    def __init__(self, *recipe: Any) -> None:
        self.recipe = recipe

    def __reduce__(self) -> Any:
        return self.recipe


def legacy(pickled: bytes, storages: dict[str, Tensor]) -> bytes:
    """A stream as PyTorch 0.1 to 1.5 wrote it."""
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    out = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, facts))
    out += pickled + pickle.dumps(sorted(storages), 2)
    for _, value in sorted(storages.items()):
        out += struct.pack("<q", value.numel()) + value.numpy().tobytes()
    return out


def test_what_python_2_and_the_first_pytorch_wrote(tmp_path: Path) -> None:
    """As in torchvision's first weights: OrderedDict of lists, parameters as variables, parts."""
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"U\x01kX\x03\x00\x00\x00cpuK\x0aX\x01\x00\x00\x00vK\x04K\x06\x87tQ"
    )
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"K\x01K\x02K\x02\x86K\x02K\x01\x86tR"
    variable = b"ctorch.nn.parameter\nParameter\n)\x81(" + tensor + b"\x89}\x88\x89tb"
    before = b"ctorch\nFloatTensor\n)\x81(" + storage + b"K\x00K\x03\x85K\x02\x85tb"
    pairs = b"](](U\x01a" + variable + b"e](U\x01b" + before + b"ee"
    pickled = b"\x80\x02ccollections\nOrderedDict\n" + pairs + b"\x85R."
    path = tmp_path / "old.pth"
    path.write_bytes(legacy(pickled, {"k": torch.arange(10.0)}))
    numbers = torch.arange(10.0)[4:]
    assert_same(read_weights(path).tensors, {"a": numbers[1:5].view(2, 2), "b": numbers[:6:2]})


def test_files_with_their_source_code(tmp_path: Path) -> None:
    """Legacy modules name their class through a persistent id, with the source beside it."""
    model = nn.Sequential(nn.Linear(3, 2))
    saved(tmp_path, model, zipped=False)
    data = (tmp_path / "weights.pth").read_bytes()
    assert b"module" in data
    assert b"Sequential(Module)" in data
    assert_same(read_weights(tmp_path / "weights.pth").tensors, model.state_dict())


NO_WEIGHTS: dict[str, tuple[Any, str]] = {
    "a tensor": (torch.rand(3), "neither a network nor a state_dict"),
    "a list": ([torch.rand(3)], "neither a network nor a state_dict"),
    "nothing": ({}, "holds no weights"),
    "a number among them": ({"a": torch.rand(3), "epoch": 3}, "'epoch' is not a tensor"),
    "numbers as names": ({3: torch.rand(3)}, "is not a tensor"),
    "two networks": ({"model": {"a": torch.rand(1)}, "net": {"a": torch.rand(1)}}, "each of"),
    "complex": ({"a": torch.zeros(2, dtype=torch.complex64)}, "ComplexFloatStorage"),
    "a view with the other sign": ({"a": torch._neg_view(torch.rand(3))}, "negative view"),
    "a call": ({"a": _Old(np.load, ("x",))}, "numpy.load when it is read"),
    "an escape": ({"a\x1b[2J": torch.rand(1)}, "impossible name"),
}


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_what_holds_no_weights_is_refused_by_name(tmp_path: Path, name: str) -> None:
    value, why = NO_WEIGHTS[name]
    with pytest.raises(UserError, match=why) as caught:
        saved(tmp_path, value)
    assert str(tmp_path / "weights.pth") in str(caught.value)


def test_a_safetensors_file_is_read(tmp_path: Path) -> None:
    path, state = tmp_path / "weights.bin", Tied().state_dict()  # known by its content
    wrapped = {f"module.{name}": value.clone().contiguous() for name, value in state.items()}
    save_file(wrapped, path, {"format": "pt"})
    found = read_weights(path)
    assert_same(dict(sorted(found.tensors.items())), dict(sorted(state.items())))
    assert (found.kind, found.classes, found.beside) == ("state_dict", (), ())
    whole = path.read_bytes()
    for data in (whole[:-1], whole + b"x", whole.replace(b"F32", b"C64")):
        path.write_bytes(data)
        with pytest.raises(UserError, match="cannot be imported"):
            read_weights(path)
    for odd, why in (({}, "no weights"), ({"a\x1b[2J": torch.rand(1)}, "impossible name")):
        save_file(odd, path)
        with pytest.raises(UserError, match=why):
            read_weights(path)


def test_torchscript_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.jit.save(torch.jit.script(nn.Linear(3, 2)), path)
    with pytest.raises(UserError, match="TorchScript"):
        read_weights(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    for data, why in (
        (b"", "neither torch.save"),
        (b"<html>404</html>", "neither torch.save"),
        (pickle.dumps({"a": 1}), "not one of torch.save"),
        (buffer.getvalue(), "not one of torch.save"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=why):
            read_weights(path)
    for missing in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(UserError, match=r"none\.pth|not a regular file"):
            read_weights(missing)
