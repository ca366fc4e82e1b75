"""Let the meta device compute as a GPU does: in fused kernels, and under autocast."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Functions that autocast computes in half precision, and in float32 (torch's documentation, "CUDA
# Ops that can autocast"). torch has no autocast for the meta device.
_HALF = {
    *("linear", "bilinear", "matmul", "__matmul__", "__rmatmul__", "mm", "mv", "bmm", "addmm"),
    *("addbmm", "baddbmm", "einsum", "prelu", "scaled_dot_product_attention"),
    *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)),
}
_FULL = {
    *("layer_norm", "group_norm", "softmax", "log_softmax", "exp", "expm1", "log", "log1p", "pow"),
    *("rsqrt", "reciprocal", "norm", "sum", "prod", "cumsum", "cosine_similarity", "softplus"),
}
_PYTHON = ("torch.nn.functional", "torch.functional")
_OVERRIDES = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


class Kernels(TorchFunctionMode):
    """A mode in which the meta device uses a GPU's fused kernels, and autocast if `half`."""

    def __init__(self, half: bool) -> None:
        super().__init__()
        self._half = half

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if isinstance(func, FunctionType) and func.__globals__["__name__"] in _PYTHON:
            with self:  # it calls other functions that are counted
                return _body(func)(*args, **kwargs)
        if self._half and name in _HALF | _FULL:
            dtype = torch.bfloat16 if name in _HALF else torch.float32
            args = [_as(dtype, one) for one in args]
            kwargs = {key: _as(dtype, one) for key, one in kwargs.items()}
        if name == "dropout" and len(args) == 3:
            return torch.native_dropout(*args)[0] if args[1] and args[2] else args[0]
        if name == "scaled_dot_product_attention":
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _body(func: FunctionType) -> FunctionType:
    """Return a function of torch that does not check for modes before it computes."""
    names = {**func.__globals__, **dict.fromkeys(_OVERRIDES, lambda *_: False)}
    body = FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body


def _as(dtype: torch.dtype, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_as(dtype, one) for one in value]
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if attn_mask is None and not enable_gqa:  # then a GPU keeps no matrix of tokens x tokens
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
