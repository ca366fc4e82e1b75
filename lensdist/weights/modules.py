"""What a pickled module says of itself, held against the network that is built for its weights.

A file holds classes by name and objects' attributes, but not the code of a class. So a class must
be torch's or torchvision's own, and every attribute and every sub-module must be as it is in the
network built here, but for what changes nothing in eval mode.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from lensdist.utils.errors import UserError
from lensdist.weights.architectures import some
from lensdist.weights.described import Global, Object

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")  # of all hooks, these take part in a forward
_BOOKKEEPING = frozenset(vars(nn.Module())) | {"_backend"}
# fmt: off
_WITHOUT_EFFECT = frozenset({
    # Of dropout and of batch statistics, which eval mode does not use; of memory and speed.
    "p", "drop_rate", "dropout", "momentum", "inplace", "memory_efficient", "enable_nested_tensor",
    "use_nested_tensor", "mask_check",
    # Of the constructor alone; and the shape of a weight, which is compared itself.
    "inplanes", "base_width", "_norm_layer", "in_channels",
    # What the recipe's networks are known to have got wrong, for which they carry a note.
    "batch_first",
})
_LATER = frozenset({  # older versions of torch and torchvision lack them, and do as their default
    "padding_mode", "_reversed_padding_repeated_twice", "track_running_stats", "groups", "dilation",
    "norm_first", "activation_relu_or_gelu",
})
# fmt: on
_EARLIER = {"threshold": 0, "value": 0}  # of ReLU, in PyTorch before 1.1
_COUNTER = {"num_batches_tracked"}  # files from before PyTorch 0.4.1 lack it
_HINT = "where the difference does not matter, import the state_dict() of the network"
_DATA_PARALLEL = "torch.nn.parallel.data_parallel.DataParallel"


def stand_in(name: str, **parts: Any) -> nn.Module:
    """A module in place of a published class, whose code only its notebook has."""
    module: nn.Module = type(name, (nn.Module,), {})()
    for key, part in parts.items():
        setattr(module, key, part)
    return module


def values_of(found: Object, name: str) -> list[Any]:
    """The values of an attribute in a module that was checked, and in all that it holds."""
    own = [found.state[name]] if name in found.state else []
    children = found.state["_modules"].values()
    return own + [v for child in children if child is not None for v in values_of(child, name)]


def check_module(found: Object, built: nn.Module) -> None:
    """Make sure that the module in a file computes what ours does, as far as a file can say.

    Args:
        found: the module, as `pickles.parse` describes it.
        built: as its library builds it; its weights do not matter. `stand_in` where there is none.

    Raises:
        UserError: they differ; names the module and the attribute.
    """
    if found.kind == _DATA_PARALLEL:  # on one device it calls what it holds
        state = found.state
        _no_hooks(state, "its DataParallel")
        odd = state.keys() - _BOOKKEEPING - {"device_ids", "output_device", "src_device_obj"}
        plain = state.get("dim", 0) == 0 and list(state["_modules"]) == ["module"]
        if odd - {"dim", "module"} or not plain:
            raise UserError("its DataParallel is not a plain one; save the module that it holds")
        found = state["_modules"]["module"]
    _check(found, built, "")


def _check(found: Object, built: nn.Module, place: str) -> None:
    named = f"its module {place}" if place else "its network"
    _check_class(found, built, named)
    theirs, ours = found.state, vars(built)
    if found.args or found.items:
        raise UserError(f"{named} is made from more than its attributes")
    _no_hooks(theirs, named)
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if name not in _BOOKKEEPING and name not in _WITHOUT_EFFECT:
            _check_attribute(name, theirs, ours, named)
    for group in ("_parameters", "_buffers", "_modules"):
        have, want = _names(theirs, group), _names(ours, group)
        # A Sequential computes in the order of its modules; weights go by their names.
        ordered = group == "_modules"
        if list(have) != list(want) if ordered else (have.keys() ^ want.keys()) - _COUNTER:
            raise UserError(
                f"{named} holds {_list(have)}, and in the network built here {_list(want)}; {_HINT}"
            )
    children = _names(theirs, "_modules")
    for name, child in built.named_children():
        _check(children[name], child, f"{place}.{name}" if place else name)


def _check_class(found: Object, built: nn.Module, named: str) -> None:
    wanted = _path(type(built))
    if wanted.startswith(__name__):  # a stand-in: notebooks are modules of any name
        known = found.kind.rpartition(".")[2] == type(built).__name__
    else:
        known = found.kind == wanted
    if not known:
        raise UserError(
            f"{named} is of class {found.kind}, and {wanted.removeprefix(f'{__name__}.')} is built "
            f"here; {_HINT}"
        )


def _check_attribute(name: Any, theirs: dict[Any, Any], ours: dict[str, Any], named: str) -> None:
    if name not in ours:
        if name in _EARLIER and _same(theirs[name], _EARLIER[name]):
            return
        raise UserError(
            f"{named} has the attribute {ascii(name)[:80]}, which the network built here does not "
            f"have; {_HINT}"
        )
    if name not in theirs:
        if name in _LATER:
            return
        raise UserError(f"{named} lacks the attribute {name}; {_HINT}")
    if not _same(theirs[name], ours[name]):
        raise UserError(
            f"{named} has {name} {_shown(theirs[name])}, and {_shown(ours[name])} in the network "
            f"built here; {_HINT}"
        )


def _no_hooks(state: dict[Any, Any], named: str) -> None:
    for group in _HOOKS:
        if state.get(group):
            raise UserError(f"{named} has {group.strip('_').replace('_', ' ')}; {_HINT}")


def _names(state: dict[Any, Any], group: str) -> dict[str, Any]:
    """What a module holds, by name; without the dots that DenseNet's names had before torch 0.4."""
    entries = state.get(group) or {}
    found = {name.replace(".", ""): value for name, value in entries.items() if value is not None}
    if len(found) < sum(value is not None for value in entries.values()):
        raise UserError("it holds one layer under both old and new names")
    return found


def _same(theirs: Any, ours: Any) -> bool:
    """Whether a described value is that of ours; one number stands for two."""
    if isinstance(ours, (tuple, list)) and type(theirs) is int:
        theirs = (theirs,) * len(ours)
    elif type(ours) is int and isinstance(theirs, (tuple, list)) and len(theirs) == 2:
        ours = (ours,) * 2
    if isinstance(ours, (tuple, list)):
        return (
            isinstance(theirs, (tuple, list))
            and len(theirs) == len(ours)
            and all(map(_same, theirs, ours))
        )
    if callable(ours):
        return isinstance(theirs, Global) and theirs.name == _path(ours)
    plain = (bool, int, float, str, type(None))
    same_kind = isinstance(theirs, bool) == isinstance(ours, bool)
    return isinstance(theirs, plain) and same_kind and bool(theirs == ours)


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
