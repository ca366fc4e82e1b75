"""Application of a network of one image size to frames of any size."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lensdist.models.resample import enlarge


def tiled(
    draw: Callable[[Tensor], Tensor], frames: Tensor, size: int, factor: int, batch: int
) -> Tensor:
    """Enlarge frames in tiles that overlap by a third and are blended, so that no seam shows.

    Each pixel of a frame has one weight for its whole block of the result, so the means of blocks
    are kept.

    Args:
        draw: (B, C, size, size) -> (B, D, f size, f size).
        frames: (N, C, H, W), H and W at least 2; frames smaller than a tile are mirrored.
        size: pixels per side of a tile.
        factor: f.
        batch: tiles at a time.

    Returns:
        (N, D, f H, f W).
    """
    n, _, height, width = frames.shape
    padded = _mirrored(frames, size)
    rows, columns = (_starts(side, size, size // 3) for side in padded.shape[-2:])
    places = [(k, top, left) for k in range(n) for top in rows for left in columns]
    window = _window(size, frames.device)
    total: Tensor | None = None
    weight = torch.zeros(padded.shape[-2:], device=frames.device)
    for top in rows:
        for left in columns:
            weight[top : top + size, left : left + size] += window
    for first in range(0, len(places), batch):
        some = places[first : first + batch]
        tiles = torch.stack(
            [padded[k, :, top : top + size, left : left + size] for k, top, left in some]
        )
        drawn = draw(tiles)
        if total is None:
            shape = (n, drawn.shape[1], *(factor * side for side in padded.shape[-2:]))
            total = drawn.new_zeros(shape)
        for (k, top, left), one in zip(some, drawn, strict=True):
            share = window / weight[top : top + size, left : left + size]
            into = total[k, :, factor * top : factor * (top + size)]
            into[..., factor * left : factor * (left + size)] += one * enlarge(share, factor)
    assert total is not None
    return total[..., : factor * height, : factor * width]


def _mirrored(frames: Tensor, size: int) -> Tensor:
    """Mirror frames below and to the right until they have at least `size` pixels per side."""
    while min(frames.shape[-2:]) < size:  # one reflection can repeat all pixels but the last
        more = [min(max(size - side, 0), side - 1) for side in frames.shape[-2:]]
        frames = F.pad(frames, (0, more[1], 0, more[0]), mode="reflect")
    return frames


def _starts(side: int, size: int, overlap: int) -> list[int]:
    """Return the first pixels of tiles, equally spaced from one end to the other."""
    gaps = -(-(side - size) // (size - overlap))
    return [round(i * (side - size) / gaps) for i in range(gaps)] + [side - size]


def _window(size: int, device: torch.device) -> Tensor:
    """Return weights (size, size): 1 over most of a tile, less towards its borders, never 0."""
    ramp = torch.arange(1, size + 1, device=device, dtype=torch.float32)
    edge = torch.minimum(ramp, ramp.flip(0)).clamp_max(size // 3) / (size // 3)
    return edge[:, None] * edge
