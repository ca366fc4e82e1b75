"""The part of a tensor that one process keeps: a run of elements in row-major order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Share(NamedTuple):
    """A process's part of a tensor.

    Attributes:
        shape: of the whole tensor.
        begin: index of the first element of the part, in row-major order.
        values: the part in one dimension: the memory itself, not a copy.
    """

    shape: torch.Size
    begin: int
    values: Tensor


def nth(tensor: Tensor, rank: int, size: int) -> Share:
    """Return the `rank`-th of `size` equal parts of a tensor that every process holds."""
    begin, end = span(tensor.numel(), rank, size)
    return Share(tensor.shape, begin, tensor.detach().reshape(-1)[begin:end])


def span(count: int, rank: int, size: int) -> tuple[int, int]:
    """Return the first and the last but one of the `rank`-th of `size` equal parts of `count`.

    The last parts may be shorter, or empty.
    """
    n = -(-count // size)
    return min(rank * n, count), min((rank + 1) * n, count)
