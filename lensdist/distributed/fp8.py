"""Compute wide linear layers in float8 (`precision: fp8`); all else is bf16 autocast's.

The method is that of Micikevicius et al. 2022 (arXiv:2209.05433): activations and weights in E4M3,
gradients in E5M2, each tensor scaled anew by its largest magnitude, sums in float32. Weights, their
gradients and the optimizer's state stay float32, and parameters keep their names.

Scales are powers of two, which cost no digits: a value that float8 can hold stays unchanged, and no
value lies beyond float8's range, so none is clamped.

Float8 is used in training mode only: a scale depends on all images of a micro-batch, and in
evaluation the output for an image must not depend on the other images of its batch.

TransformerEngine, which uses the same products of cuBLAS, is not used: it needs its own modules in
place of torch's, whose state holds more than parameters, and a CUDA compiler at installation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lensdist.utils.errors import UserError

if TYPE_CHECKING:
    from lensdist.tasks.types import Stage

# Per token, bf16 spends 6 * in * out FLOP on a layer's three products, and float8 about 5/8 of that
# time; quantisation moves 6 more bytes for each of in + out numbers. At the 700 (790) TFLOP/s and
# 2.9 (4.3) TB/s that an H100 (H200) sustains, the two are equal if the harmonic mean of in and out
# is 1300 (980).
WIDE = 1400

_CAPABILITY = (8, 9)  # Ada and Hopper are the first with float8 products
_ALIGNED = 16  # cuBLAS: each side of a float8 matrix is a multiple of it
_E4M3, _E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_LEAST = 1e-20  # below it a tensor counts as zero, for which any finite scale is right


@dataclass
class Layers:
    """A network's linear layers, by whether they use float8."""

    wide: dict[str, nn.Linear] = field(default_factory=dict)
    """Layers by name whose products are computed in float8."""
    narrow: dict[str, nn.Linear] = field(default_factory=dict)
    """Layers too narrow for float8 to be faster."""
    ragged: dict[str, nn.Linear] = field(default_factory=dict)
    """Layers that are wide enough, but whose width is not a multiple of 16."""

    def __str__(self) -> str:
        left = f"{len(self.narrow)} narrower than {WIDE}"
        if self.ragged:
            left += f", {len(self.ragged)} of widths that are not multiples of {_ALIGNED}"
        return f"{len(self.wide)} linear layers in float8; in bf16, {left}"


def layers(model: nn.Module) -> Layers:
    """Return the linear layers by whether float8 makes them faster; nothing is changed."""
    found = Layers()
    for name, module in model.named_modules():
        if type(module) is not nn.Linear:  # a derived class may not call its forward
            continue
        if _width(module) < WIDE:
            found.narrow[name] = module
        elif module.in_features % _ALIGNED or module.out_features % _ALIGNED:
            found.ragged[name] = module
        else:
            found.wide[name] = module
    return found


def check_device(device: torch.device) -> None:
    """Check that the device has float8 products.

    Raises:
        UserError: it does not.
    """
    wanted = "precision: fp8 needs an NVIDIA GPU of compute capability 8.9 or more (L40S, H100)"
    if device.type != "cuda" or torch.version.hip:
        here = "an AMD GPU" if torch.version.hip else f"the {device.type.upper()}"
        raise UserError(f"{wanted}, and this run is on {here}; use bf16")
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        has = ".".join(map(str, capability))
        name = torch.cuda.get_device_name(device)
        raise UserError(f"{wanted}, and {name} has {has}; use bf16")
    if not hasattr(torch, "_scaled_mm"):
        raise UserError(
            f"precision: fp8 needs torch._scaled_mm, which torch {torch.__version__} lacks; "
            "use bf16"
        )


def check_network(network: nn.Module, stages: Sequence[Stage]) -> None:
    """Check that float8 makes at least one layer faster that trains at some stage.

    Args:
        network: may be on the meta device.
        stages: of its training.

    Raises:
        UserError: there is no such layer.
    """
    found = layers(network)
    if any(stage.trains(f"{name}.weight") for name in found.wide for stage in stages):
        return
    if found.wide:
        why = "the layers of such widths are frozen throughout"
    elif found.ragged:
        why = f"{_largest(found.ragged)} is not a multiple of {_ALIGNED}"
    elif found.narrow:
        why = f"the widest here is {_largest(found.narrow)}"
    else:
        why = "there is none here"
    raise UserError(
        f"precision: fp8 only speeds up linear layers whose widths' harmonic mean is "
        f"{WIDE} or more, such as 1024 -> 3072, and {why}; use bf16"
    )


def apply(network: nn.Module) -> int:
    """Let wide layers that train compute in float8, and return their number.

    Only `forward` of instances changes. Call it again at each stage, after layers are frozen, and
    before the network is compiled or wrapped.
    """
    training = [layer for layer in layers(network).wide.values() if layer.training]
    for layer in training:
        # A bound method, which a deep copy of the network binds to its own layer.
        layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]
    return len(training)


def undo(network: nn.Module) -> None:
    """Restore the `forward` of all layers."""
    for module in network.modules():
        if getattr(vars(module).get("forward"), "__func__", None) is _forward:
            del module.forward


def _width(layer: nn.Linear) -> float:
    return 2 * layer.in_features * layer.out_features / (layer.in_features + layer.out_features)


def _largest(named: dict[str, nn.Linear]) -> str:
    layer = max(named.values(), key=_width)
    return f"{layer.in_features} -> {layer.out_features}"


def _forward(self: nn.Linear, x: Tensor) -> Tensor:
    """Map (…, in) to (…, out), of the type that `nn.Linear` returns, with or without autocast."""
    if not self.training:
        return F.linear(x, self.weight, self.bias)
    kind = x.device.type
    under = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if under else x.dtype
    rows = x.reshape(-1, self.in_features)
    count = len(rows)
    if count % _ALIGNED:  # the weight's gradient is a sum over rows
        rows = F.pad(rows, (0, 0, 0, -count % _ALIGNED))
    y = cast(Tensor, _Product.apply(rows, self.weight, self.bias, dtype))  # type: ignore[no-untyped-call]
    return y[:count].reshape(*x.shape[:-1], self.out_features)


class _Product(torch.autograd.Function):
    """The product x (M, in) @ weight (out, in)^T + bias -> (M, out), and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: Any) -> Tensor:
        x_unit, weight_unit = _unit(x, _E4M3), _unit(weight, _E4M3)
        x8 = _in_units(x, x_unit, _E4M3)
        y = _matmul(x8, _in_units(weight, weight_unit, _E4M3).t(), x_unit, weight_unit, dtype)
        if bias is not None:
            y += bias
        # The weight itself: if it is sharded, a quantised copy of all of it would stay.
        ctx.save_for_backward(x8, x_unit, weight, weight_unit)
        ctx.dtype = x.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x8, x_unit, weight, weight_unit = ctx.saved_tensors
        unit = _unit(grad, _E5M2)
        grad8 = _in_units(grad, unit, _E5M2)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            columns = _columns(_in_units(weight, weight_unit, _E4M3))
            of_x = _matmul(grad8, columns, unit, weight_unit, ctx.dtype)
        if ctx.needs_input_grad[1]:
            turned = grad8.t().contiguous()
            of_weight = _matmul(turned, _columns(x8), unit, x_unit, weight.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum(0, dtype=torch.float32)
        return of_x, of_weight, of_bias, None


def _unit(x: Tensor, kind: torch.dtype) -> Tensor:
    """Return the power of two in whose units all of `x` fits a float8 type: () float32.

    It is NaN if `x` is not finite: then the whole product is NaN, and the run stops with an error.
    """
    low, high = x.aminmax()
    largest = torch.maximum(-low, high).float()
    room = torch.finfo(kind).max / largest.clamp(min=_LEAST)
    whole = (room.view(torch.int32) & 0x7F800000).view(torch.float32)  # its exponent alone
    return torch.where(largest.isfinite(), whole.reciprocal(), torch.nan)


def _in_units(x: Tensor, unit: Tensor, kind: torch.dtype) -> Tensor:
    """Return `x` / `unit` in a float8 type, row by row in memory."""
    return (x * unit.reciprocal()).to(kind).contiguous()


def _columns(x: Tensor) -> Tensor:
    """Return the same matrix, column by column in memory."""
    return x.t().contiguous().t()


def _matmul(a: Tensor, b: Tensor, a_unit: Tensor, b_unit: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply (M, K), by rows in memory, and (K, N), by columns -> (M, N); K, N multiples of 16.

    Hopper's cuBLAS accepts no other layout, and not two matrices of E5M2. torch's public
    `scaled_mm` is the same kernel, but `FlopCounterMode` does not count it. `use_fast_accum` would
    add up in fewer digits than float32's.
    """
    return torch._scaled_mm(a, b, a_unit, b_unit, out_dtype=dtype, use_fast_accum=False)
