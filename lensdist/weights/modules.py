"""Comparison of a pickled module with the network that is built here for its weights.

A file holds the names of classes and the attributes of objects, but not the code of classes. So a
class must be torch's or torchvision's own. Every attribute and sub-module must equal that of the
network built here, except for those without effect in eval mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from lensdist.utils.errors import UserError
from lensdist.utils.text import some
from lensdist.weights.flatten import walk
from lensdist.weights.unpickling import Global, Object

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")  # the only hooks that act in a forward pass
_BOOKKEEPING = frozenset(vars(nn.Module())) | {"_backend"}
# fmt: off
_WITHOUT_EFFECT = frozenset({
    # Dropout and batch statistics, which eval mode does not use; memory and speed.
    "p", "drop_rate", "dropout", "momentum", "inplace", "memory_efficient", "enable_nested_tensor",
    "use_nested_tensor", "mask_check",
    # Arguments of the constructor only; and shapes of weights, which are compared directly.
    "inplanes", "base_width", "_norm_layer", "in_channels",
    # A known mistake of the recipe's networks, which a note reports.
    "batch_first",
})
_LATER = frozenset({  # older versions of torch and torchvision lack them, and use the default
    "padding_mode", "_reversed_padding_repeated_twice", "track_running_stats", "groups", "dilation",
    "norm_first", "activation_relu_or_gelu",
})
# fmt: on
_EARLIER = {"threshold": 0, "value": 0}  # attributes of ReLU in PyTorch before 1.1
_COUNTER = {"num_batches_tracked"}  # files from before PyTorch 0.4.1 lack it
_DATA_PARALLEL = "torch.nn.parallel.data_parallel.DataParallel"


def stand_in(name: str, **parts: Any) -> nn.Module:
    """Return a module in place of a published class, whose code is only in its notebook."""
    module: nn.Module = type(name, (nn.Module,), {})()
    for key, part in parts.items():
        setattr(module, key, part)
    return module


def values_of(found: Object, name: str) -> list[Any]:
    """Return the values of an attribute in a checked module and in all its sub-modules."""
    return [part.state[name] for _, part in walk(found) if name in part.state]


def check_module(found: Object, built: nn.Module) -> None:
    """Check that the module in a file computes the same as ours, as far as a file shows.

    Args:
        found: the module, as `unpickling.Reader` describes it.
        built: the module as its library builds it, with any weights; `stand_in` for the recipe's.

    Raises:
        UserError: they differ; the message names the module and the attribute.
    """
    if found.kind == _DATA_PARALLEL:  # on one device it only calls its module
        state = found.state
        odd = state.keys() - _BOOKKEEPING - {"device_ids", "output_device", "src_device_obj"}
        plain = state.get("dim", 0) == 0 and list(state["_modules"]) == ["module"]
        if odd - {"dim", "module"} or not plain or any(map(state.get, _HOOKS)):
            raise UserError("its DataParallel is unusual; save the module that it holds")
        found = state["_modules"]["module"]
    for difference in _differences(found, built, ""):
        raise UserError(
            f"{difference}; if the difference does not matter, import the state_dict() of the "
            "network"
        )


def _differences(found: Object, built: nn.Module, place: str) -> Iterator[str]:
    """Give what differs. Only the first may be used, since what follows relies on the rest."""
    named = f"its module {place}" if place else "its network"
    wanted, kind = _path(type(built)), found.kind
    if wanted.startswith(__name__):  # a stand-in: the module of a notebook's class has any name
        wanted, kind = type(built).__name__, kind.rpartition(".")[2]
    if kind != wanted:
        yield f"{named} is of class {found.kind}, and {wanted} is built here"
    theirs, ours = found.state, vars(built)
    if found.args or found.items:
        yield f"{named} holds more than attributes"
    for group in _HOOKS:
        if theirs.get(group):
            yield f"{named} has {group.strip('_').replace('_', ' ')}"
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if name in _BOOKKEEPING or name in _WITHOUT_EFFECT:
            continue
        if name not in ours:
            if name not in _EARLIER or not _same(theirs[name], _EARLIER[name]):
                shown = ascii(name)[:80]
                yield f"{named} has the attribute {shown}, which the network built here lacks"
        elif name not in theirs:
            if name not in _LATER:
                yield f"{named} lacks the attribute {name}"
        elif not _same(theirs[name], ours[name]):
            have, want = _shown(theirs[name]), _shown(ours[name])
            yield f"{named} has {name} {have}, and {want} in the network built here"
    for group in ("_parameters", "_buffers", "_modules"):
        known, need = _names(theirs, group), _names(ours, group)
        # The order of modules matters in a Sequential; weights are identified by name.
        ordered = group == "_modules"
        if list(known) != list(need) if ordered else (known.keys() ^ need.keys()) - _COUNTER:
            yield f"{named} holds {_list(known)}, and in the network built here {_list(need)}"
    children = _names(theirs, "_modules")
    for name, child in built.named_children():
        yield from _differences(children[name], child, f"{place}.{name}" if place else name)


def _names(state: dict[Any, Any], group: str) -> dict[str, Any]:
    """Return a module's entries by name, without the dots of DenseNet's names before torch 0.4."""
    entries = state.get(group) or {}
    found = {name.replace(".", ""): value for name, value in entries.items() if value is not None}
    if len(found) < sum(value is not None for value in entries.values()):
        raise UserError("it holds one layer under both old and new names")
    return found


def _same(theirs: Any, ours: Any) -> bool:
    """Return whether a described value equals ours; one number equals a pair of it."""
    if isinstance(ours, (tuple, list)) and type(theirs) is int:
        theirs = (theirs,) * len(ours)
    elif type(ours) is int and isinstance(theirs, (tuple, list)) and len(theirs) == 2:
        ours = (ours,) * 2
    if isinstance(ours, (tuple, list)):
        many = isinstance(theirs, (tuple, list)) and len(theirs) == len(ours)
        return many and all(map(_same, theirs, ours))
    if callable(ours):
        return isinstance(theirs, Global) and theirs.name == _path(ours)
    return isinstance(theirs, (bool, int, float, str, type(None))) and bool(theirs == ours)


def _path(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _shown(value: Any) -> str:
    if isinstance(value, (tuple, list)) and 0 < len(value) <= 4:
        return f"({', '.join(map(_number, value))})"
    if isinstance(value, Global):
        return value.name
    return _path(value) if callable(value) else _number(value)


def _number(value: Any) -> str:
    known = isinstance(value, (float, str, type(None)))  # bool is a kind of int
    if known or (isinstance(value, int) and abs(value) < 1 << 63):
        return ascii(value)[:80]
    return f"a {type(value).__name__}"


def _list(names: Iterable[str]) -> str:
    shown = [ascii(name)[1:-1][:40] for name in names]
    return some(shown) if shown else "nothing"
