"""Writing safetensors files, hashed on the way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensdist.files import sync

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


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write CPU tensors in the safetensors format and fsync, hashing on the way.

    The library's own writer needs the whole file in memory or a second read to hash it, and holds
    the interpreter lock while it writes, which would stall the training thread. The format is a
    length, a JSON header and the raw bytes; reading is left to the library.

    Returns:
        The file's size in bytes and its SHA-256.
    """
    # Wide types first: every tensor then starts at a multiple of its own item size.
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
