"""A reader of PyTorch weight files (`torch.save`) that executes nothing in them.

There are two containers of the same pickle. Since PyTorch 1.6 it is a zip archive without
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lensdist.utils.errors import UserError
from lensdist.weights.described import BadPickle, Object, Storage, Strided
from lensdist.weights.flatten import flatten
from lensdist.weights.pickles import parse

MAX_BYTES = 16 << 30
_MAX_PICKLE = 64 << 20  # DenseNet-161 + ResNet-18 as whole modules take 0.5 MB
_MAX_MEMBERS = 20_000
_MAX_DIRECTORY = 4 << 20
_SLACK = 4 << 20  # bytes beyond a file's size, for small tensors that repeat numbers
_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_Fetch = Callable[[str, int], bytearray]  # takes a storage's key and its expected bytes


@dataclass(frozen=True)
class Pth:
    """The content of a weight file.

    Attributes:
        tensors: the weights by name, without the prefixes of DistributedDataParallel and
            torch.compile. Tensors that share memory in the file do so here; none has a gradient.
        kind: whether the file holds a whole module or a state dict.
        classes: the names of the module's classes, which were not imported.
        beside: the names of the file's other content (`epoch`, `optimizer`, …).
        module: the description of the whole module, for `modules.check_module`.
    """

    tensors: dict[str, Tensor]
    kind: Literal["module", "state_dict"]
    classes: tuple[str, ...]
    beside: tuple[str, ...]
    module: Object | None


def read_pth(path: str | os.PathLike[str]) -> Pth:
    """Read a file that `torch.save` wrote.

    Raises:
        UserError: it is not such a file, is damaged or hostile, or does not hold weights.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is not a regular file; give a file of weights")
        with path.open("rb") as file:
            return _read(file, path.stat().st_size)
    except BadPickle as error:
        raise UserError(f"{path} cannot be imported: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _read(file: io.BufferedReader, size: int) -> Pth:
    if size > MAX_BYTES:
        raise BadPickle(f"it is larger than {MAX_BYTES >> 30} GiB")
    try:
        start = file.read(4)
        root, fetch = (_zip if start == b"PK\x03\x04" else _stream)(file, size)
        flat = flatten(root)
        storages: dict[str, Tensor] = {}
        _check_sizes(flat.tensors, size)
        tensors = {name: _tensor(name, t, fetch, storages) for name, t in flat.tensors.items()}
    except (BadPickle, OSError):
        raise
    except Exception as error:  # damaged archives may raise anything
        raise BadPickle(f"it is damaged ({type(error).__name__}: {error})") from error
    return Pth(tensors, flat.kind, flat.classes, flat.beside, flat.module)


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
    for m in members:
        # PyTorch does not compress members, so a compressed member may be a decompression bomb.
        if (
            m.compress_type != zipfile.ZIP_STORED
            or m.compress_size != m.file_size
            or m.flag_bits & 1
        ):
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

    return parse(archive.read(pickles[0]))[0], fetch


def _stream(file: io.BufferedReader, size: int) -> tuple[Any, _Fetch]:
    file.seek(0)
    head = file.read(_MAX_PICKLE)
    if head[:1] != b"\x80":
        if head[8:9] == b"{":
            raise BadPickle(
                "it is a safetensors file, not one of torch.save; `import` cannot use it"
            )
        raise BadPickle("it is not a file of torch.save")
    at = 0
    found = []
    for _ in range(5):
        value, length = parse(head[at:])
        found.append(value)
        at += length
        if found[0] != _MAGIC:
            raise BadPickle("it is a pickle, but not one of torch.save")
    _, _, machine, root, keys = found
    if not isinstance(machine, dict) or not machine.get("little_endian", True):
        raise BadPickle("its numbers are big-endian; save it on another machine")
    if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys):
        raise BadPickle("it does not list its storages")
    places = _places(file, at, size, keys, _item_sizes(root))

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


def _item_sizes(root: Any) -> dict[str, int]:
    """Return the bytes per element of every storage of a stream, which its pickle describes."""
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, (str, bytes, int, float)):
            continue
        seen.add(id(item))
        if isinstance(item, Storage):
            if sizes.setdefault(item.key, _dtype(item).itemsize) != _dtype(item).itemsize:
                raise BadPickle(f"its storage {item.key!a} is of two types")
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, (list, tuple)):
            waiting += item
        elif isinstance(item, Object):
            waiting += (item.args, item.state, item.items)
        elif isinstance(item, Strided):
            waiting.append(item.storage)
    return sizes


def _places(
    file: io.BufferedReader, at: int, size: int, keys: list[str], items: Mapping[str, int]
) -> dict[str, tuple[int, int]]:
    """Return the first byte and the number of bytes of each storage."""
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        file.seek(at)
        count = int.from_bytes(file.read(8), "little", signed=True)
        if key not in items or key in places:
            raise BadPickle(f"its storage {key!a} belongs to no tensor, or is there twice")
        length = count * items[key]
        if count < 0 or at + 8 + length > size:
            raise BadPickle("its numbers are cut short")
        places[key] = (at + 8, length)
        at += 8 + length
    return places


# ---- tensors


def _dtype(storage: Storage) -> torch.dtype:
    try:
        return _DTYPES[storage.type]
    except KeyError:
        raise BadPickle(f"it holds numbers of type {storage.type}, unlike any network") from None


def _check_sizes(tensors: Mapping[str, Strided], held: int) -> None:
    """Check shapes, and that all tensors together are not much larger than the file.

    Strides of 0 and shared storages repeat numbers without a limit, and copies take memory.
    """
    left = 4 * held + _SLACK  # small types become float32, and a weight may have several names
    for name, tensor in tensors.items():
        offset, size, stride = tensor.offset, tensor.size, tensor.stride
        if (
            not (isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride))
            or len(size) > 16
            or not all(type(n) is int and 0 <= n < 1 << 40 for n in (offset, *size, *stride))
        ):
            raise BadPickle(f"its tensor {name!a} is of an impossible shape")
        left -= 4 * math.prod(size)
        if left < 0:
            raise BadPickle("its tensors have far more numbers than the file holds")


def _tensor(name: str, described: Strided, fetch: _Fetch, storages: dict[str, Tensor]) -> Tensor:
    """Build the described tensor; its elements must all be within its storage."""
    storage = described.storage
    if not isinstance(storage, Storage):
        raise BadPickle(f"its tensor {name!a} has no numbers")
    offset, size, stride = described.offset, described.size, described.stride
    dtype = _dtype(storage)
    if storage.key not in storages:
        data = fetch(storage.key, storage.whole * dtype.itemsize)
        storages[storage.key] = (
            torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        )
    flat = storages[storage.key]
    if flat.dtype != dtype or len(flat) != storage.whole:
        raise BadPickle(f"its storage {storage.key!a} is of two types or sizes")
    flat = flat[storage.start : storage.start + storage.count]
    if not math.prod(size):
        return torch.empty(size, dtype=dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= len(flat):
        raise BadPickle(f"its tensor {name!a} reaches beyond its numbers")
    return flat.as_strided(size, stride, storage.start + offset)
