"""Safetensors files: hashed while they are written, and read only if the header is valid."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import torch
from safetensors.torch import load
from torch import Tensor

from lensdist.utils.files import sync
from lensdist.utils.sealed import LIMIT, parse_json, read_bytes

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}

T = TypeVar("T")


class Described(Protocol):
    """What has a tensor's shape and type."""

    @property
    def shape(self) -> torch.Size: ...
    @property
    def dtype(self) -> torch.dtype: ...


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write CPU tensors in the safetensors format, and fsync; hash while writing.

    The library's own writer needs the whole file in memory, or a second read to hash it, and holds
    the interpreter lock, which would stall the training thread. The format is a length, a JSON
    header and the raw bytes.

    Returns:
        The file's size in bytes and its SHA-256.
    """
    # Wide types come first, so that every tensor starts at a multiple of its item size.
    order = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n))
    header: dict[str, Any] = {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as f:
        for part in _parts(head, (tensors[n] for n in order)):
            f.write(part)
            digest.update(part)
        f.flush()
        sync(f.fileno())
    return 8 + len(head) + offset, digest.hexdigest()


def _parts(head: bytes, tensors: Iterable[Tensor]) -> Iterable[bytes | memoryview]:
    yield len(head).to_bytes(8, "little") + head
    for tensor in tensors:
        if tensor.numel():
            yield tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def read_shapes(path: Path) -> tuple[int, dict[str, Tensor]]:
    """Read the names, shapes and types of a safetensors file from its header.

    Returns:
        The file's size in bytes, and tensors on the meta device, by name.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a complete safetensors file.
    """
    size = path.stat().st_size
    if not path.is_file():  # opening a named pipe would block
        raise ValueError("not a regular file")
    with path.open("rb") as file:
        return size, {name: like for name, (like, _) in places(file, size).items()}


def places(file: IO[bytes], size: int) -> dict[str, tuple[Tensor, int]]:
    """Read the header of an open safetensors file of `size` bytes.

    Returns:
        By name, a tensor on the meta device and the first byte of its values.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a complete safetensors file.
    """
    head = file.read(8)
    head += file.read(min(int.from_bytes(head, "little"), LIMIT))
    return _places(head, size)


def read_safetensors(path: Path, size: int, sha256: str) -> dict[str, Tensor]:
    """Read the tensors of a file of this size and SHA-256; the size bounds memory.

    The bytes are read once, so the checked bytes are the used ones. (A memory map would be
    simpler, but the process would be killed if the file is truncated meanwhile.)

    Raises:
        OSError: it cannot be read.
        ValueError: it is another file, or not a safetensors file.
    """
    data = read_bytes(path, size)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("altered since it was written")
    _places(data, len(data))  # the library panics at some bad headers, and accepts others
    found: dict[str, Tensor] = load(data)
    return found


def under(prefix: str, tensors: Mapping[str, T]) -> dict[str, T]:
    """Return the tensors whose names begin with a prefix, under the rest of their names."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def misfit(wanted: Mapping[str, Described], given: Mapping[str, Described]) -> str | None:
    """Return how tensors differ from a network's in name, shape or type; None if they fit."""
    for name in wanted.keys() - given.keys():
        return f"{name} is missing"
    for name, value in given.items():
        if name not in wanted:
            return f"{name[:80]} is unknown"
        own = wanted[name]
        if value.shape != own.shape:
            return f"{name} is {tuple(value.shape)}, not {tuple(own.shape)}"
        floats = value.dtype.is_floating_point and own.dtype.is_floating_point
        if value.dtype != own.dtype and not floats:
            return f"{name} is {value.dtype}, not {own.dtype}"
    return None


def nonfinite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of a tensor that holds NaN or infinity; None if none does."""
    return next((name for name, value in tensors.items() if not value.isfinite().all()), None)


def _places(head: bytes, size: int) -> dict[str, tuple[Tensor, int]]:
    """Return what `places` does, from the first bytes of a file of `size` bytes.

    Raises:
        ValueError: it is not a complete safetensors file.
    """
    length = int.from_bytes(head[:8], "little")
    if size < 8 or length > min(size - 8, LIMIT):
        raise ValueError("not a safetensors file")
    try:
        header = parse_json(head[8 : 8 + length])
        header.pop("__metadata__", None)
        found, spans = {}, []
        for name, entry in header.items():
            dtype, shape, (begin, end) = (entry[k] for k in ("dtype", "shape", "data_offsets"))
            kind = _DTYPES[dtype]
            counts = [*shape, begin, end]
            whole = all(type(n) is int and n >= 0 for n in counts) and len(shape) <= 16
            if not whole or math.prod(n or 1 for n in shape) > 2**60:
                raise ValueError(f"{name[:80]} has a shape that no tensor can have")
            if math.prod(shape) * kind.itemsize != end - begin:
                raise ValueError(f"{name[:80]} has a length that does not match its shape")
            like = torch.empty(shape, dtype=kind, device="meta")
            found[name] = like, 8 + length + begin
            spans.append((begin, end))
    except (LookupError, TypeError, AttributeError, ValueError) as e:
        raise ValueError(f"its header is damaged: {str(e)[:200]}") from e
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise ValueError("its header is damaged: tensors overlap, or leave gaps")
        at = end
    if 8 + length + at != size:
        raise ValueError(f"{size:,} bytes instead of the {8 + length + at:,} of its header")
    return found
