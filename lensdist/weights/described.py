"""What a pickle's objects and calls become: descriptions, by a table of ours (torch-free).

A class is its name; an object is its name and its state; a call is looked up here or refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


class BadPickle(Exception):
    """The pickle is damaged, hostile or of a kind that no weights need; the message is a clause."""


@dataclass(frozen=True, eq=False)
class Global:
    """A class or function, by name only."""

    name: str


@dataclass(eq=False)
class Object:
    """An object that the file would have made: what it would have been given, unexamined."""

    kind: str
    args: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Storage:
    """A stretch of numbers elsewhere in the file."""

    type: str
    key: str
    count: int
    """Number of elements."""

    start: int
    whole: int
    """Elements of the stored whole, of which this is `count` from `start` on."""


@dataclass(frozen=True, eq=False)
class Strided:
    """A tensor as described: nothing of it has been checked."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


# ---- what may be called


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Strided:
    # requires_grad, hooks, and a dictionary with the bits of conjugate and negative views
    if len(rest) > 2 and rest[2]:
        raise BadPickle("it holds a conjugate or negative view of a tensor; save a copy of it")
    return Strided(storage, offset, size, stride)


def _first(tensor: Any, *rest: Any) -> Any:
    return tensor


def _subclass(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """A tensor with attributes of its own; they are not weights.

    Raises:
        BadPickle: it is of a class of its own, which computes as its code says.
    """
    name = kind.name if isinstance(kind, Global) else type(kind).__name__
    if name not in _TENSORS:
        raise BadPickle(f"it holds a tensor of class {name}, whose code is not in the file")
    return call(function, args)


def mapping(pairs: Iterable[Any] = ()) -> dict[Any, Any]:
    """The dictionary of key and value pairs."""
    return {_key(key): value for key, value in pairs}


def _ordered(pairs: Any = None) -> dict[Any, Any]:
    if isinstance(pairs, dict):
        return pairs
    out = mapping(pairs or ())  # Python 2 wrote ordered dictionaries as lists of pairs
    if pairs:
        pairs.clear()  # or a long list, named again and again, would cost its length each time
    return out


def _list(items: Any = None) -> Any:
    return [] if items is None else items  # sets too: only their items matter here


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

# What stands beside weights in checkpoints: kept as a description, of no further use.
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
        "torch.nn.backends.thnn._get_thnn_function_backend",  # in whole modules before 1.5
    }
    | {
        f"numpy.{core}.multiarray.{f}"
        for core in ("core", "_core")
        for f in ("scalar", "_reconstruct")
    }
)
_BUILTIN_CLASSES = frozenset({f"builtins.{t}" for t in ("int", "float", "bool", "str", "object")})


def find_global(module: Any, name: Any) -> Global:
    """A class or function by its name.

    Raises:
        BadPickle: it is Python's own and none of those that stand beside weights.
    """
    if not (isinstance(module, str) and isinstance(name, str)):
        raise BadPickle("its pickle asks for a class without a name")
    if len(module) + len(name) > 200:
        raise BadPickle("its pickle asks for a class with an impossible name")
    full = f"{module}.{name}".replace("__builtin__.", "builtins.")  # as Python 2 called it
    if not all(part.isidentifier() for part in full.split(".")):
        raise BadPickle(f"its pickle asks for {full!a}, which is no name")
    ours = full in _CALLS or full in _BESIDE or full in _BUILTIN_CLASSES
    if not ours and full.split(".")[0] in sys.stdlib_module_names:
        raise BadPickle(f"its pickle asks for {full}, which no weights need")
    return Global(full)


def call(function: Any, args: Any) -> Any:
    """What takes the place of a call in the file.

    Raises:
        BadPickle: it is in neither table.
    """
    if not isinstance(function, Global) or not isinstance(args, tuple):
        raise BadPickle("its pickle calls something that is no function")
    if function.name in _CALLS:
        return _CALLS[function.name](*args)
    if function.name in _BESIDE:
        return Object(function.name, args)
    raise BadPickle(
        f"its pickle calls {function.name} when it is read; save the network's state_dict() instead"
    )


def make(kind: Any, args: Any) -> Any:
    """What takes the place of an object of any class."""
    if not isinstance(kind, Global) or not isinstance(args, tuple):
        raise BadPickle("its pickle makes an object of something that is no class")
    return _ordered(*args) if kind.name == "collections.OrderedDict" else Object(kind.name, args)


def _key(key: Any) -> Any:
    # Tuples would be hashed item by item, nested ones in C without a limit; and integers beyond 64
    # bits can be made to collide. The keys of weights are names.
    if key is None or isinstance(key, (str, bytes, float, Global, Object, Strided)):
        return key
    if isinstance(key, int) and abs(key) < 1 << 63:
        return key
    raise BadPickle("its pickle holds a dictionary whose keys are no names")


def find_storage(pid: Any) -> Any:
    """A persistent id: a storage, or (before 1.6) a class together with its source code."""
    if not isinstance(pid, tuple) or len(pid) < 2:
        raise BadPickle("its pickle refers to something that is no storage")
    if pid[0] == "module":
        return pid[1]
    if pid[0] != "storage" or len(pid) not in (5, 6):
        raise BadPickle("its pickle refers to something that is no storage")
    kind, key, _, count = pid[1:5]
    named = isinstance(kind, Global) and isinstance(key, str)
    if not named or type(count) is not int or count < 0:
        raise BadPickle("its pickle describes an impossible storage")
    name = kind.name.rsplit(".", 1)[-1]
    if len(pid) == 5 or pid[5] is None:
        return Storage(name, key, count, 0, count)
    _, start, part = pid[5]  # storages could be parts of others once
    if not all(type(n) is int and n >= 0 for n in (start, part)) or start + part > count:
        raise BadPickle("its pickle describes an impossible storage")
    return Storage(name, key, part, start, count)


def set_state(target: Any, state: Any) -> None:
    """Record an object's state, which a file would have put into its attributes."""
    if isinstance(target, Object):
        if target.state is not None:  # Python would merge them
            raise BadPickle("its pickle sets the state of one object twice")
        target.state = state
    elif not isinstance(target, dict):  # an ordered dictionary's attributes: _metadata
        raise BadPickle("its pickle changes something that is no object")
