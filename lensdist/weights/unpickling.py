"""A reader of the pickle in a PyTorch file that imports and calls nothing in it (torch-free).

It is Python's own unpickler, with descriptions in place of all classes and functions.
`torch.load(weights_only=True)` cannot be used: a dictionary whose key is 200,000 nested tuples ends
the process (SIGSEGV), a call of `bytearray` takes any amount of memory, and it refuses the opcodes
of protocol 4 and whole modules from before torch 1.6. `tests/faults/test_hostile_pth.py` has these.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

_MAX_ARGUMENTS = 100
_OPCODES = """
    PROTO FRAME STOP MARK POP POP_MARK BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT
    SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINSTRING BINSTRING
    SHORT_BINBYTES BINBYTES BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    EMPTY_LIST LIST APPEND APPENDS SETITEM SETITEMS GLOBAL STACK_GLOBAL BINPERSID
"""


class BadPickle(Exception):
    """An error: a pickle is damaged, hostile or not one of weights; the message is a clause."""


@dataclass(frozen=True, eq=False)
class Global:
    """A class or function, of which only the name is known."""

    name: str


class Names(dict[Any, Any]):
    """A dictionary of the file. Its keys are names, or other values that are cheap to hash."""

    def __setitem__(self, key: Any, value: Any) -> None:
        # Hashing nested tuples recurses in C without a limit, and integers beyond 64 bits can be
        # made to collide.
        cheap = key is None or isinstance(key, (str, bytes, float, Global, Object, Strided))
        if not cheap and not (isinstance(key, int) and abs(key) < 1 << 63):
            raise BadPickle("its pickle holds a dictionary whose keys are not names")
        super().__setitem__(key, value)


@dataclass(eq=False)
class Object:
    """An object that the file would have made, with its unchecked arguments and state."""

    kind: str
    args: tuple[Any, ...]
    state: Any = None
    items: Names = field(default_factory=Names)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, item: Any) -> None:
        self.items[len(self.items)] = item


@dataclass(frozen=True, eq=False)
class Storage:
    """A range of numbers elsewhere in the file: `count` of the `whole`, from `start` on."""

    type: str
    key: str
    whole: int
    start: int
    count: int


@dataclass(frozen=True, eq=False)
class Strided:
    """The unchecked description of a tensor."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


class Reader(pickle._Unpickler):
    """A reader of the pickles of one file.

    Attributes:
        storages: every storage that the pickles name, by key.
    """

    # The version in C has no table of opcodes, and allocates for any index that the file names.
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code: pickle._Unpickler.dispatch[code]
        for code in (getattr(pickle, name)[0] for name in _OPCODES.split())
    }
    memo: dict[int, Any]
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="latin-1")
        self.storages: dict[str, Storage] = {}

    def load(self) -> Any:
        """Read the next pickle.

        Returns:
            Its content, of None, bool, int, float, str, bytes, list, tuple and the classes of this
            module. The content may refer to itself.

        Raises:
            BadPickle: it is damaged, or uses something that no weights need.
        """
        self.memo.clear()  # else it is shared by the pickles of a stream
        try:
            return super().load()
        except EOFError as error:
            raise BadPickle("its pickle is cut short") from error
        except BadPickle:
            raise
        except Exception as error:  # damaged pickles may raise anything
            raise BadPickle(f"its pickle is damaged ({type(error).__name__})") from error

    def find_class(self, module: str, name: str) -> Any:
        """Describe a class or function."""
        if len(module) + len(name) > 200:
            raise BadPickle("its pickle asks for a class with an impossible name")
        full = f"{module}.{name}".replace("__builtin__.", "builtins.")  # the name in Python 2
        if not all(part.isidentifier() for part in full.split(".")):
            raise BadPickle(f"its pickle asks for {full!a}, which is not a name")
        return Global(full)

    def persistent_load(self, pid: Any) -> Any:
        """Resolve a persistent id: a storage, or (before 1.6) a class with its source code."""
        match pid:
            case ("module", Global() as kind, *_):
                return kind
            case ("storage", Global(kind), str(key), _, int(whole), *view) if len(view) < 2:
                # In old versions a storage could be a part of another.
                _, start, count = view[0] if view and view[0] is not None else (key, 0, whole)
            case _:
                raise BadPickle("its pickle refers to something that is not a storage")
        found = Storage(kind.rsplit(".", 1)[-1], key, whole, start, count)
        if not all(type(n) is int and n >= 0 for n in (whole, start, count)):
            raise BadPickle("its pickle describes an impossible storage")
        known = self.storages.setdefault(key, found)
        if start + count > whole or (known.type, known.whole) != (found.type, whole):
            raise BadPickle(f"its storage {key!a} is of two types or sizes")
        return found

    def _call(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.append(call(function, args))

    def _new(self) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, Global) or not isinstance(args, tuple):
            raise BadPickle("its pickle makes an object of something that is not a class")
        ordered = kind.name == "collections.OrderedDict"
        self.append(call(kind, args) if ordered else Object(kind.name, args))

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Names):  # the attributes of an ordered dictionary: _metadata
            return
        if not isinstance(target, Object):
            raise BadPickle("its pickle changes something that is not an object")
        if target.state is not None:  # Python would merge them
            raise BadPickle("its pickle sets the state of one object twice")
        target.state = state

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append(_names(zip(items[::2], items[1::2], strict=True)))

    dispatch |= {
        pickle.REDUCE[0]: _call,
        pickle.NEWOBJ[0]: _new,
        pickle.BUILD[0]: _build,
        pickle.DICT[0]: _dict,
        pickle.EMPTY_DICT[0]: lambda self: self.append(Names()),
        # Only the items of a set matter here, and a list does not hash them.
        pickle.EMPTY_SET[0]: dispatch[pickle.EMPTY_LIST[0]],
        pickle.ADDITEMS[0]: dispatch[pickle.APPENDS[0]],
        pickle.FROZENSET[0]: dispatch[pickle.LIST[0]],
    }


def call(function: Any, args: Any) -> Any:
    """Return the replacement of a call in the file.

    Raises:
        BadPickle: it is in neither table.
    """
    if not isinstance(function, Global) or not isinstance(args, tuple):
        raise BadPickle("its pickle calls something that is not a function")
    if len(args) > _MAX_ARGUMENTS:  # a long tuple, passed many times, would cost its length each
        raise BadPickle(f"its pickle calls {function.name} with {len(args):,} arguments")
    if function.name in _CALLS:
        return _CALLS[function.name](*args)
    if function.name in _BESIDE:
        return Object(function.name, args)
    raise BadPickle(
        f"its pickle calls {function.name} when it is read; save the network's state_dict() instead"
    )


# ---- the calls that are allowed


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Strided:
    # `rest`: requires_grad, hooks, and a dictionary with the flags of conjugate and negative views
    if len(rest) > 2 and rest[2]:
        raise BadPickle("it holds a conjugate or negative view of a tensor; save a copy of it")
    return Strided(storage, offset, size, stride)


def _first(tensor: Any, *rest: Any) -> Any:
    return tensor


def _subclass(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """Return a tensor of a class of torch, without its attributes, which are not weights."""
    name = kind.name if isinstance(kind, Global) else type(kind).__name__
    if name not in _TENSORS:
        raise BadPickle(f"it holds a tensor of class {name}, whose code is not in the file")
    return call(function, args)


def _names(pairs: Any) -> Names:
    out = Names()
    for key, value in pairs:
        out[key] = value
    return out


def _ordered(pairs: Any = ()) -> Names:
    if isinstance(pairs, Names):
        return pairs
    out = _names(pairs)  # Python 2 wrote ordered dictionaries as lists of pairs
    if pairs:
        pairs.clear()  # so that a long list, used many times, costs its length only once
    return out


def _list(items: Any = None) -> Any:
    return [] if items is None else items


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
_TENSORS = frozenset({
    "torch.Tensor", "torch._tensor.Tensor",
    "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer",
})  # fmt: skip
# Calls for other content of checkpoints: they are kept as descriptions and not used.
# The last is in whole modules from before torch 1.5.
_NOT_WEIGHTS = """
    _codecs.encode argparse.Namespace builtins.bytearray builtins.complex builtins.slice
    collections.Counter collections.defaultdict collections.deque
    datetime.date datetime.datetime datetime.timedelta functools.partial
    numpy.dtype numpy.ndarray numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct
    numpy._core.multiarray.scalar numpy._core.multiarray._reconstruct
    pathlib.Path pathlib.PosixPath pathlib.PurePosixPath torch.device
    torch.nn.backends.thnn._get_thnn_function_backend
"""
_BESIDE = frozenset(_NOT_WEIGHTS.split())
