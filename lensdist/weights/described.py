"""Descriptions of the objects and calls in a pickle (torch-free).

A class becomes its name, and an object its class and its state. A call is looked up in the tables
of this module, or refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


class BadPickle(Exception):
    """An error: a pickle is damaged, hostile or not one of weights; the message is a clause."""


@dataclass(frozen=True, eq=False)
class Global:
    """A class or function, of which only the name is known."""

    name: str


@dataclass(eq=False)
class Object:
    """An object that the file would have made, with its unchecked arguments and state."""

    kind: str
    args: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Storage:
    """A range of numbers elsewhere in the file."""

    type: str
    key: str
    count: int
    """The number of elements."""

    start: int
    whole: int
    """The elements of the full storage, of which this is `count` from `start` on."""


@dataclass(frozen=True, eq=False)
class Strided:
    """The unchecked description of a tensor."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


# ---- the calls that are allowed


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Strided:
    # `rest`: requires_grad, hooks, and a dictionary with the flags of conjugate and negative views
    if len(rest) > 2 and rest[2]:
        raise BadPickle("it holds a conjugate or negative view of a tensor; save a copy of it")
    return Strided(storage, offset, size, stride)


def _first(tensor: Any, *rest: Any) -> Any:
    return tensor


def _subclass(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """Return a tensor without its attributes, which are not weights.

    Raises:
        BadPickle: its class is not torch's, so its code is unknown.
    """
    name = kind.name if isinstance(kind, Global) else type(kind).__name__
    if name not in _TENSORS:
        raise BadPickle(f"it holds a tensor of class {name}, whose code is not in the file")
    return call(function, args)


def mapping(pairs: Iterable[Any] = ()) -> dict[Any, Any]:
    """Return the dictionary of key and value pairs."""
    return {_key(key): value for key, value in pairs}


def _ordered(pairs: Any = None) -> dict[Any, Any]:
    if isinstance(pairs, dict):
        return pairs
    out = mapping(pairs or ())  # Python 2 wrote ordered dictionaries as lists of pairs
    if pairs:
        pairs.clear()  # so that a long list, used many times, costs its length only once
    return out


def _list(items: Any = None) -> Any:
    return [] if items is None else items  # also for sets: only the items matter here


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.Size": _first,
    "collections.OrderedDict": _ordered,
    "builtins.dict": _ordered,
    "builtins.set": _list,
    "builtins.frozenset": _list,
    "builtins.list": _list,
}

_TENSORS = frozenset(
    {"torch.Tensor", "torch._tensor.Tensor"}
    | {f"torch.nn.parameter.{name}" for name in ("Parameter", "Buffer")}
)

# Calls for other content of checkpoints: they are kept as descriptions and not used.
_BESIDE = frozenset(
    {
        "_codecs.encode",
        "argparse.Namespace",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.slice",
        "collections.Counter",
        "collections.defaultdict",
        "collections.deque",
        "datetime.date",
        "datetime.datetime",
        "datetime.timedelta",
        "functools.partial",
        "numpy.dtype",
        "numpy.ndarray",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "torch.device",
        "torch.nn.backends.thnn._get_thnn_function_backend",  # in whole modules before torch 1.5
    }
    | {
        f"numpy.{core}.multiarray.{f}"
        for core in ("core", "_core")
        for f in ("scalar", "_reconstruct")
    }
)
_BUILTIN_CLASSES = frozenset({f"builtins.{t}" for t in ("int", "float", "bool", "str", "object")})


def find_global(module: Any, name: Any) -> Global:
    """Describe a class or function.

    Raises:
        BadPickle: it belongs to Python's standard library and is not in the tables.
    """
    if not (isinstance(module, str) and isinstance(name, str)):
        raise BadPickle("its pickle asks for a class without a name")
    if len(module) + len(name) > 200:
        raise BadPickle("its pickle asks for a class with an impossible name")
    full = f"{module}.{name}".replace("__builtin__.", "builtins.")  # the name in Python 2
    if not all(part.isidentifier() for part in full.split(".")):
        raise BadPickle(f"its pickle asks for {full!a}, which is not a name")
    ours = full in _CALLS or full in _BESIDE or full in _BUILTIN_CLASSES
    if not ours and full.split(".")[0] in sys.stdlib_module_names:
        raise BadPickle(f"its pickle asks for {full}, which no weights need")
    return Global(full)


def call(function: Any, args: Any) -> Any:
    """Return the replacement of a call in the file.

    Raises:
        BadPickle: it is in neither table.
    """
    if not isinstance(function, Global) or not isinstance(args, tuple):
        raise BadPickle("its pickle calls something that is not a function")
    if function.name in _CALLS:
        return _CALLS[function.name](*args)
    if function.name in _BESIDE:
        return Object(function.name, args)
    raise BadPickle(
        f"its pickle calls {function.name} when it is read; save the network's state_dict() instead"
    )


def make(kind: Any, args: Any) -> Any:
    """Return the description of an object of any class."""
    if not isinstance(kind, Global) or not isinstance(args, tuple):
        raise BadPickle("its pickle makes an object of something that is not a class")
    return _ordered(*args) if kind.name == "collections.OrderedDict" else Object(kind.name, args)


def _key(key: Any) -> Any:
    # Hashing nested tuples recurses in C without a limit, and integers beyond 64 bits can be made
    # to collide. The keys of weights are names.
    if key is None or isinstance(key, (str, bytes, float, Global, Object, Strided)):
        return key
    if isinstance(key, int) and abs(key) < 1 << 63:
        return key
    raise BadPickle("its pickle holds a dictionary whose keys are not names")


def find_storage(pid: Any) -> Any:
    """Resolve a persistent id: a storage, or (before 1.6) a class with its source code."""
    if not isinstance(pid, tuple) or len(pid) < 2:
        raise BadPickle("its pickle refers to something that is not a storage")
    if pid[0] == "module":
        return pid[1]
    if pid[0] != "storage" or len(pid) not in (5, 6):
        raise BadPickle("its pickle refers to something that is not a storage")
    kind, key, _, count = pid[1:5]
    named = isinstance(kind, Global) and isinstance(key, str)
    if not named or type(count) is not int or count < 0:
        raise BadPickle("its pickle describes an impossible storage")
    name = kind.name.rsplit(".", 1)[-1]
    if len(pid) == 5 or pid[5] is None:
        return Storage(name, key, count, 0, count)
    _, start, part = pid[5]  # in old versions a storage could be a part of another
    if not all(type(n) is int and n >= 0 for n in (start, part)) or start + part > count:
        raise BadPickle("its pickle describes an impossible storage")
    return Storage(name, key, part, start, count)


def set_state(target: Any, state: Any) -> None:
    """Record an object's state, from which the file would have set its attributes."""
    if isinstance(target, Object):
        if target.state is not None:  # Python would merge them
            raise BadPickle("its pickle sets the state of one object twice")
        target.state = state
    elif not isinstance(target, dict):  # an ordered dictionary's attributes: _metadata
        raise BadPickle("its pickle changes something that is not an object")
