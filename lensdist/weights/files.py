"""A reader of weight files, of `torch.save` or safetensors, that executes nothing in them.

`torch.save` has two containers of the same pickle. Since PyTorch 1.6 it is a zip archive without
compression: `NAME/data.pkl`, and the numbers of storage K in `NAME/data/K`. Older files, many of
them still published, are a stream: five pickles (a magic number, the version, facts about the
machine, the object, the keys of its storages), then each storage as a count and its numbers.
"""

from __future__ import annotations

import io
import math
import os
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lensdist.utils.errors import UserError
from lensdist.utils.files import sha256
from lensdist.utils.tensors import read_safetensors, read_shapes
from lensdist.weights.flatten import flatten, plain_names, walk
from lensdist.weights.unpickling import BadPickle, Object, Reader, Storage, Strided

MAX_BYTES = 16 << 30
_MAX_PICKLE = 8 << 20  # DenseNet-161 + ResNet-18 as whole modules take 0.5 MB
_MAX_MEMBERS = 20_000
_MAX_DIRECTORY = 4 << 20
_SLACK = 4 << 20  # bytes beyond a file's size, for small tensors that repeat numbers
_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
}  # fmt: skip
_Fetch = Callable[[str, int], bytearray]  # takes a storage's key and its expected bytes


@dataclass(frozen=True)
class WeightFile:
    """The content of a weight file.

    Attributes:
        tensors: the weights by name, without the prefixes of DistributedDataParallel and
            torch.compile. Tensors that share memory in the file do so here; none has a gradient.
        module: the description of the whole module, for `modules.check_module`.
        beside: the names of the file's other content (`epoch`, `optimizer`, …).
    """

    tensors: dict[str, Tensor]
    module: Object | None = None
    beside: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["module", "state_dict"]:
        """What the file holds."""
        return "state_dict" if self.module is None else "module"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the module's classes, which were not imported."""
        return tuple(sorted({part.kind for _, part in walk(self.module)} if self.module else ()))


def read_weights(path: str | os.PathLike[str]) -> WeightFile:
    """Read a file that `torch.save` or safetensors wrote.

    Raises:
        UserError: it is not such a file, is damaged or hostile, or does not hold weights.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is not a regular file; give a file of weights")
        with path.open("rb") as file:
            return _read(path, file, path.stat().st_size)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UserError:
        raise
    except Exception as error:  # damaged archives may raise anything
        known = isinstance(error, BadPickle)
        reason = str(error) if known else f"it is damaged ({type(error).__name__}: {error})"
        raise UserError(f"{path} cannot be imported: {reason}") from error


def _read(path: Path, file: io.BufferedReader, size: int) -> WeightFile:
    if size > MAX_BYTES:
        raise BadPickle(f"it is larger than {MAX_BYTES >> 30} GiB")
    start = file.read(9)
    if start[8:] == b"{":
        size, shapes = read_shapes(path)
        names = plain_names(shapes)
        tensors = read_safetensors(path, size, sha256(path))
        return WeightFile({short: tensors[name] for name, short in names.items()})
    root, fetch = (_zip if start[:4] == b"PK\x03\x04" else _stream)(file, size)
    described, module, beside = flatten(root)
    left = 4 * size + _SLACK  # small types become float32, and a weight may have several names
    for name, tensor in described.items():
        _check_shape(name, tensor)
        # Strides of 0 and shared storages repeat numbers without a limit, and copies take memory.
        left -= 4 * math.prod(tensor.size)
        if left < 0:
            raise BadPickle("its tensors have far more numbers than the file holds")
    storages: dict[str, Tensor] = {}
    tensors = {name: _tensor(name, t, fetch, storages) for name, t in described.items()}
    return WeightFile(tensors, module, beside)


# ---- containers


class _Bounded(io.BufferedReader):
    """A file that reads at most `limit` bytes at once."""

    limit = _MAX_DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(self.limit + 1 if size is None or size < 0 else size)
        if len(data) > self.limit:
            raise BadPickle("its directory is too long for a network")
        return data


def _zip(file: io.BufferedReader, size: int) -> tuple[Any, _Fetch]:
    bounded = _Bounded(file.raw)
    try:
        archive = zipfile.ZipFile(bounded)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise BadPickle(f"its zip archive is damaged or cut short ({error})") from error
    bounded.limit = MAX_BYTES
    members = archive.infolist()
    names = {m.filename: m for m in members}
    if len(members) > _MAX_MEMBERS or len(names) < len(members):
        raise BadPickle("its zip archive holds the same name twice, or far too many")
    pickles = [n for n in names if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(pickles) != 1:
        raise BadPickle("it is a zip archive but not one of torch.save")
    folder = pickles[0].removesuffix("data.pkl")
    if folder + "constants.pkl" in names:
        raise BadPickle("it is a TorchScript program; save the network's state_dict() instead")
    # PyTorch does not compress members, so a compressed member may be a decompression bomb.
    plain = all(m.compress_type == zipfile.ZIP_STORED and not m.flag_bits & 1 for m in members)
    if not plain or any(m.compress_size != m.file_size for m in members):
        raise BadPickle("its zip archive is compressed or encrypted, unlike PyTorch's")
    if sum(m.file_size for m in members) > size:
        raise BadPickle("its zip archive claims more bytes than it has")
    order = names.get(folder + "byteorder")
    if order is not None and archive.read(order) != b"little":
        raise BadPickle("its numbers are big-endian; save it on another machine")
    if names[pickles[0]].file_size > _MAX_PICKLE:
        raise BadPickle("its pickle is too long for a network")

    def fetch(key: str, expected: int) -> bytearray:
        member = names.get(f"{folder}data/{key}")
        if member is None or member.file_size != expected:
            raise BadPickle(f"its storage {key!a} is missing or of another size than it claims")
        return bytearray(archive.read(member))  # checks the CRC

    return Reader(io.BytesIO(archive.read(pickles[0]))).load(), fetch


def _stream(file: io.BufferedReader, size: int) -> tuple[Any, _Fetch]:
    file.seek(0)
    head = io.BytesIO(file.read(_MAX_PICKLE))
    if head.getvalue()[:1] != b"\x80":
        raise BadPickle("it is a file of neither torch.save nor safetensors")
    reader = Reader(head)
    if reader.load() != _MAGIC:
        raise BadPickle("it is a pickle, but not one of torch.save")
    _, machine, root, keys = (reader.load() for _ in range(4))
    if not isinstance(machine, dict) or not machine.get("little_endian", True):
        raise BadPickle("its numbers are big-endian; save it on another machine")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise BadPickle("it does not list its storages")
    places: dict[str, tuple[int, int]] = {}  # the first byte and the number of bytes
    at = head.tell()
    for key in keys:
        file.seek(at)
        count = int.from_bytes(file.read(8), "little", signed=True)
        if key not in reader.storages or key in places:
            raise BadPickle(f"its storage {key!a} belongs to no tensor, or is there twice")
        length = count * _dtype(reader.storages[key]).itemsize
        if count < 0 or at + 8 + length > size:
            raise BadPickle("its numbers are cut short")
        places[key] = (at + 8, length)
        at += 8 + length

    def fetch(key: str, expected: int) -> bytearray:
        start, length = places.get(key, (0, -1))
        if length != expected:
            raise BadPickle(f"its storage {key!a} is missing or of another size than it claims")
        data = bytearray(expected)
        file.seek(start)
        if file.readinto(data) != expected:
            raise BadPickle(f"its storage {key!a} is cut short")
        return data

    return root, fetch


# ---- tensors


def _dtype(storage: Storage) -> torch.dtype:
    try:
        return _DTYPES[storage.type.removesuffix("Storage")]
    except KeyError:
        raise BadPickle(f"it holds numbers of type {storage.type}, unlike any network") from None


def _check_shape(name: str, tensor: Strided) -> None:
    offset, size, stride = tensor.offset, tensor.size, tensor.stride
    if (
        not (isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride))
        or len(size) > 16
        or not all(type(n) is int and 0 <= n < 1 << 40 for n in (offset, *size, *stride))
    ):
        raise BadPickle(f"its tensor {name!a} is of an impossible shape")


def _tensor(name: str, described: Strided, fetch: _Fetch, storages: dict[str, Tensor]) -> Tensor:
    """Build the described tensor; its elements must all be within its storage."""
    storage = described.storage
    if not isinstance(storage, Storage):
        raise BadPickle(f"its tensor {name!a} has no numbers")
    offset, size, stride = described.offset, described.size, described.stride
    dtype = _dtype(storage)
    if storage.key not in storages:
        data = fetch(storage.key, storage.whole * dtype.itemsize)
        empty = torch.empty(0, dtype=dtype)
        storages[storage.key] = torch.frombuffer(data, dtype=dtype) if data else empty
    if not math.prod(size):
        return torch.empty(size, dtype=dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= storage.count:
        raise BadPickle(f"its tensor {name!a} reaches beyond its numbers")
    return storages[storage.key].as_strided(size, stride, storage.start + offset)
