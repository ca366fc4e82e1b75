"""Read images between their pixels, with splines."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = 3
"""Pixels on each side that a value up to one pixel away depends on."""


class Spline:
    """A quintic spline through the pixels of images of one size, mirrored at their edges.

    It is nearly a band-limited image (Unser 1999, doi:10.1109/79.799930).

    Args:
        shape: (H, W).
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._through = [_through(n) for n in shape]

    def weights(self, images: Tensor) -> Tensor:
        """Return the spline's weights (B, C, H + 2 `TAPS`, W + 2 `TAPS`) of (B, C, H, W)."""
        lines, columns = (one.to(images) for one in self._through)
        return F.pad(lines @ images @ columns.T, [TAPS] * 4, mode="reflect")


def read(weights: Tensor, shift: Tensor) -> Tensor:
    """Return images (B, C, H, W) from weights, moved up and to the left by `shift` (B, 2).

    Shifts are at most 1 pixel.
    """
    lines, columns = shift.unbind(1)
    return _across(_along(weights, lines, _spline), columns, _spline)


def slopes(weights: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `read` returns, and its derivatives by the two shifts."""
    lines, columns = shift.unbind(1)
    along, by_line = (_along(weights, lines, of) for of in (_spline, _slope))
    by_column = _across(along, columns, _slope)
    return _across(along, columns, _spline), _across(by_line, columns, _spline), by_column


def _along(weights: Tensor, shift: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    matrix = _taps(shift, weights.shape[2] - 2 * TAPS, of)
    return matrix @ weights


def _across(weights: Tensor, shift: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    matrix = _taps(shift, weights.shape[3] - 2 * TAPS, of)
    return weights @ matrix.transpose(2, 3)


def _taps(shift: Tensor, n: int, of: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the matrices (B, 1, n, n + 2 `TAPS`) that sum splines at places `shift` (B,)."""
    taps = of(shift[:, None] - torch.arange(-TAPS, TAPS + 1).to(shift))
    longest = F.pad(taps, (0, n))[:, None].expand(-1, n, -1).flatten(1)  # each line moves by one
    return longest[:, : n * (n + 2 * TAPS)].view(-1, 1, n, n + 2 * TAPS)


def _through(n: int) -> Tensor:
    """Return (n, n) float64, which turns pixels into the weights of splines through them."""
    pixels, knots = torch.arange(n), torch.arange(-TAPS, n + TAPS)
    inside = (n - 1) - ((n - 1) - knots.abs()).abs()
    mirror = F.one_hot(inside, n).double()
    inverse: Tensor = torch.linalg.inv(_spline((pixels[:, None] - knots).double()) @ mirror)
    return inverse


def _spline(x: Tensor) -> Tensor:
    """The quintic spline, of values in pixels."""
    a, b, c = ((end - x.abs()).clamp_min(0).pow(5) for end in (3, 2, 1))
    return (a - 6 * b + 15 * c) / 120


def _slope(x: Tensor) -> Tensor:
    """The derivative of `_spline`."""
    a, b, c = ((end - x.abs()).clamp_min(0).pow(4) for end in (3, 2, 1))
    return -x.sign() * (a - 6 * b + 15 * c) / 24
