"""A network on paper: its layers as lists of operations, written down as they are run (torch-free).

Everything that is told of a network follows from these lists: parameters, floating-point
operations, memory traffic, what the backward pass keeps, and which gradient is ready when.
"""

from __future__ import annotations

from dataclasses import dataclass

_FLOAT = 4  # bytes
_INDEX = 8  # bytes of an index that max-pooling keeps
_FP8_WIDTH, _FP8_ALIGNED = 1400, 16  # as in engine/fp8.py, which imports torch


@dataclass(frozen=True)
class Op:
    """An operation on one image, forward.

    Attributes:
        macs: multiply-adds of matrix products and convolutions; 0 for all others.
        moved: bytes of activations read and written, once each.
        kept: bytes of activations that wait for the backward pass.
        weights: parameters.
        width: bytes of a number in its product.
        fuses: a compiler makes it one kernel with what comes before.
        wide: its product is one that `precision: fp8` takes.
    """

    macs: float = 0.0
    moved: float = 0.0
    kept: float = 0.0
    weights: int = 0
    width: int = _FLOAT
    fuses: bool = False
    wide: bool = False

    @property
    def copied(self) -> int:
        """Bytes of the copy of its weights that autocast makes, and keeps."""
        return self.weights * self.width if self.width < _FLOAT else 0


@dataclass(frozen=True)
class Layer:
    """A part of a network whose gradients are ready together.

    Attributes:
        name: which its parameters' names begin with.
        ops: in order.
        block: whether it is a transformer layer: what is sharded, compiled and computed again as
            one.
        entry: bytes of its input, of one image.
        trains: whether its parameters do.
    """

    name: str
    ops: tuple[Op, ...]
    block: bool = False
    entry: float = 0.0
    trains: bool = True

    @property
    def macs(self) -> float:
        """Multiply-adds of one image, forward."""
        return sum(op.macs for op in self.ops)

    @property
    def weights(self) -> int:
        """Parameters."""
        return sum(op.weights for op in self.ops)


class Tape:
    """Writes layers down, an operation at a time.

    Args:
        width: bytes of a number in products and convolutions: 4, or 2 under autocast.

    Attributes:
        layers: those that were closed.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.layers: list[Layer] = []
        self._ops: list[Op] = []

    def close(self, name: str, *, block: bool = False, entry: float = 0.0) -> None:
        """What was written since the last layer is one, of that name."""
        self.layers.append(Layer(name, tuple(self._ops), block, entry))
        self._ops = []

    # ---- products

    def linear(
        self, rows: int, before: int, after: int, *, bias: bool = True, kept: bool = True
    ) -> None:
        """(rows, before) -> (rows, after); `kept`: its input waits for nothing else."""
        weights = before * after + bias * after
        wide = 2 * before * after >= _FP8_WIDTH * (before + after)  # their harmonic mean
        wide &= before % _FP8_ALIGNED == after % _FP8_ALIGNED == 0
        macs = float(rows * before * after)
        self._product(macs, rows * before, rows * after, weights, kept, wide)

    def conv(
        self,
        side: int,
        before: int,
        after: int,
        kernel: int,
        stride: int = 1,
        *,
        pad: int | None = None,
        groups: int = 1,
        bias: bool = False,
        kept: bool = True,
    ) -> int:
        """(before, side, side) -> (after, out, out); returns out. `pad` None: half a kernel."""
        pad = kernel // 2 if pad is None else pad
        out = (side + 2 * pad - kernel) // stride + 1
        weights = before // groups * after * kernel**2
        macs = float(out**2 * weights)
        weights += bias * after
        self._product(macs, before * side**2, after * out**2, weights, kept)
        return out

    def upconv(self, side: int, before: int, after: int, factor: int) -> int:
        """A transposed convolution whose kernels overlap by a pixel: (before, side, side) ->
        (after, factor * side, factor * side); returns the new side."""
        weights = before * after * (factor + 2) ** 2
        macs = float(side**2 * weights)
        out = factor * side
        self._product(macs, before * side**2, after * out**2, weights + after, kept=True)
        return out

    def attention(self, tokens: int, dim: int, heads: int) -> None:
        """Of queries, keys and values that lie beside each other, which are kept with the output
        and a sum of exponentials a row (Dao et al. 2022, arXiv:2205.14135): no N x N matrix."""
        moved = 4 * tokens * dim * self.width
        self._ops.append(
            Op(
                macs=2.0 * tokens**2 * dim,
                moved=moved,
                kept=moved + tokens * heads * _FLOAT,
                width=self.width,
            )
        )

    def _product(
        self, macs: float, read: int, written: int, weights: int, kept: bool, wide: bool = False
    ) -> None:
        self._ops.append(
            Op(
                macs=macs,
                moved=(read + written) * self.width,
                kept=read * self.width if kept else 0.0,
                weights=weights,
                width=self.width,
                wide=wide,
            )
        )

    # ---- everything between them

    def cast(self, numbers: int) -> None:
        """From float32 to the width of products; nothing where that is the same."""
        if self.width < _FLOAT:
            self._ops.append(Op(moved=numbers * (_FLOAT + self.width), fuses=True))

    def layer_norm(self, rows: int, dim: int, channels: int | None = None) -> None:
        """Autocast has it in float32; mean and deviation are kept for each row. `channels`: with a
        weight for each of these, as GroupNorm of one group has."""
        numbers = rows * dim
        self._ops.append(
            Op(
                moved=2 * numbers * _FLOAT,
                kept=numbers * _FLOAT + 2 * rows * _FLOAT,
                weights=2 * (channels or dim),
            )
        )

    def batch_norm(self, numbers: int, channels: int, *, affine: bool = True) -> None:
        """At the width of its input; what is kept a micro-batch, not an image, is next to none."""
        self._ops.append(
            Op(
                moved=2 * numbers * self.width,
                kept=numbers * self.width,
                weights=2 * channels * affine,
            )
        )

    def pointwise(
        self, numbers: int, *, inputs: int = 1, width: int | None = None, kept: float = 0.0
    ) -> None:
        """An activation, a sum, dropout: `inputs` tensors in, one out; `kept`: bytes a number."""
        moved = (inputs + 1) * numbers * (width or self.width)
        self._ops.append(Op(moved=moved, kept=kept * numbers, fuses=True))

    def add(self, numbers: int) -> None:
        """A block's output to float32 tokens, which stay float32."""
        self._ops.append(Op(moved=numbers * (2 * _FLOAT + self.width), fuses=True))

    def dropout(self, numbers: int, p: float) -> None:
        """Keeps a byte a number; nothing at all at p = 0."""
        if p:
            self.pointwise(numbers, kept=1.0)

    def cat(self, numbers: int) -> None:
        """A copy; what is kept of it is said by who reads it."""
        self._ops.append(Op(moved=2 * numbers * self.width))

    def pool(self, read: int, written: int, *, kept: bool = True, indices: bool = False) -> None:
        """Of `read` numbers `written` are left; a maximum's place is kept as well."""
        self._ops.append(
            Op(
                moved=(read + written) * self.width,
                kept=(read * self.width if kept else 0.0) + (written * _INDEX if indices else 0.0),
            )
        )

    def keep(self, numbers: int, width: int | None = None) -> None:
        """What is kept though the backward pass needs no more than a part of it, or its shape."""
        self._ops.append(Op(kept=numbers * (width or self.width), fuses=True))

    def parameter(self, count: int) -> None:
        """Parameters that are only added, such as learned positions."""
        self._ops.append(Op(weights=count, fuses=True))
