"""Tensors in files: read whole or in part, and checked in pieces, within bounded memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from lensdist.utils.errors import RunError
from lensdist.utils.tensors import places

_PIECE = 2**22  # bytes


@dataclass(frozen=True)
class OpenFile:
    """A safetensors file that stays open: it can still be read after its name is gone.

    Attributes:
        size: in bytes.
        tensors: shapes on the meta device, and the first byte of each, by name.
    """

    path: Path
    size: int
    tensors: dict[str, tuple[Tensor, int]]
    handle: FileIO

    def fill(self, target: Tensor, at: int) -> None:
        """Read into a 1-D tensor, from byte `at` on.

        Raises:
            RunError: the file is shorter than it was.
        """
        if not target.numel():
            return
        view = target.view(torch.uint8).numpy().data
        while view:
            count = os.preadv(self.handle.fileno(), [view[: 2**30]], at)
            if not count:
                raise RunError(f"{self.path} was cut short while it was read; start the run again")
            view, at = view[count:], at + count

    def pieces(self, sha256: str) -> Iterator[tuple[str, int, Tensor]]:
        """Yield all of the file: name, index of the first element, and values in one dimension.

        Raises:
            ValueError: at the end: the file has another SHA-256.
        """
        order = sorted(self.tensors, key=lambda name: self.tensors[name][1])
        head = torch.empty(
            min((at for _, at in self.tensors.values()), default=self.size), dtype=torch.uint8
        )
        self.fill(head, 0)
        digest = hashlib.sha256(head.numpy().data)
        for name in order:
            like, at = self.tensors[name]
            item = like.element_size()
            for begin in range(0, like.numel(), _PIECE // item):
                count = min(like.numel() - begin, _PIECE // item)
                piece = torch.empty(count, dtype=like.dtype)
                self.fill(piece, at + begin * item)
                digest.update(piece.view(torch.uint8).numpy().data)
                yield name, begin, piece
        if digest.hexdigest() != sha256:
            raise ValueError("altered since it was written")


def open_file(path: Path) -> OpenFile:
    """Open a safetensors file and read its header.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a complete safetensors file.
    """
    if not path.is_file() and path.exists():  # opening a named pipe would block
        raise ValueError("not a regular file")
    handle = FileIO(path)
    size = os.fstat(handle.fileno()).st_size
    return OpenFile(path, size, places(handle, size), handle)


class Stored:
    """A tensor in one or more files.

    Args:
        shape: of the tensor.
        parts: index of the first element (in row-major order), the file, and the name in it.

    Raises:
        ValueError: the parts overlap, leave gaps, or differ in type.
    """

    def __init__(self, shape: Sequence[int], parts: Sequence[tuple[int, OpenFile, str]]) -> None:
        found = [(begin, file, *file.tensors[name]) for begin, file, name in parts]
        self._parts = sorted(found, key=lambda part: part[0])
        self.shape = torch.Size(shape)
        end = 0
        for begin, _, like, _ in self._parts:
            if begin != end or like.dtype != self.dtype:
                raise ValueError("its parts overlap, leave gaps, or differ in type")
            end += like.numel()
        if not parts or end != self.shape.numel():
            raise ValueError("a part of it is missing, or is not its own")

    @property
    def dtype(self) -> torch.dtype:
        """The type of its elements."""
        return self._parts[0][2].dtype

    def begin_in(self, file: OpenFile) -> int | None:
        """Return the index of the first element that is in `file`; None if none is."""
        return next((begin for begin, where, *_ in self._parts if where is file), None)

    def read(self, begin: int, end: int) -> Tensor:
        """Return the elements from `begin` up to `end`, in row-major order, in one dimension."""
        found = torch.empty(end - begin, dtype=self.dtype)
        for first, file, like, at in self._parts:
            low, high = max(begin, first), min(end, first + like.numel())
            if low < high:
                place = at + (low - first) * like.element_size()
                file.fill(found[low - begin : high - begin], place)
        return found


Value = Tensor | Stored
"""A tensor in memory or in files."""


def elements(value: Value, begin: int, end: int) -> Tensor:
    """Return a tensor's elements from `begin` up to `end`, in row-major order, in one dimension."""
    return value.read(begin, end) if isinstance(value, Stored) else value.flatten()[begin:end]


def whole(value: Value) -> Tensor:
    """Return all of a tensor: itself, or read from its files."""
    if isinstance(value, Stored):
        return value.read(0, value.shape.numel()).view(value.shape)
    return value


def wholes(values: Mapping[str, Value]) -> dict[str, Tensor]:
    """Return all tensors of a mapping, read from their files."""
    return {name: whole(value) for name, value in values.items()}
