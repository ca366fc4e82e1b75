"""A reader of the pickle in a PyTorch file that imports and calls nothing in it (torch-free).

`torch.load` would run any code that the file's author put in. Here a small interpreter of the
format's opcodes builds a description, without Python's unpickler. A class becomes its name, and an
object its class and its state. A call is looked up in a table (tensors, ordered dictionaries, sets)
or refused. Memory and time are bounded by the file's size, whatever sizes the file claims.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

from lensdist.weights.described import (
    BadPickle,
    Object,
    call,
    find_global,
    find_storage,
    make,
    mapping,
    set_state,
)

_MAX_OPCODES = 1_000_000  # DenseNet-161 + ResNet-18 as whole modules have about 200,000


def parse(data: bytes) -> tuple[Any, int]:
    """Read one pickle at the start of `data`.

    Returns:
        Its content, of None, bool, int, float, str, bytes, list, tuple, dict and the classes of
        `described.py`, and its number of bytes. The content may refer to itself.

    Raises:
        BadPickle: it is damaged, or uses something that no weights need.
    """
    machine = _Machine()
    try:
        for n, (opcode, arg, position) in enumerate(pickletools.genops(data)):
            if n >= _MAX_OPCODES:
                raise BadPickle("its pickle is too long for a network")
            if opcode.name == "STOP":
                return machine.pop(), (position or 0) + 1
            machine.step(opcode.name, arg)
    except BadPickle:
        raise
    except Exception as error:  # damaged pickles may raise anything
        raise BadPickle(f"its pickle is damaged ({type(error).__name__})") from error
    raise BadPickle("its pickle is cut short")


class _Machine:
    """An interpreter with the stack, marks and memo of the pickle format."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}  # not a list, which would grow to any index in the file

    def pop(self) -> Any:
        return self.stack.pop()

    def marked(self) -> list[Any]:
        """Return everything since the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def step(self, name: str, arg: Any) -> None:
        if name in _VALUES:
            self.stack.append(arg)
        elif name in _MAKE:
            self.stack.append(_MAKE[name]())
        elif name in _TUPLES:
            n = _TUPLES[name]
            if len(self.stack) < n:
                raise BadPickle("its pickle is damaged (stack)")
            self.stack[-n:] = [tuple(self.stack[-n:])]
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[arg] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[arg])
        elif name in _OTHER:
            _OTHER[name](self, arg)
        elif name not in ("PROTO", "FRAME"):
            raise BadPickle(f"its pickle uses {name}, which no weights need")

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def discard(self, _: Any) -> None:
        self.marked()

    def drop(self, _: Any) -> None:
        self.pop()

    def tuple_(self, _: Any) -> None:
        self.push(tuple(self.marked()))

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def list_(self, _: Any) -> None:
        self.push(self.marked())

    def dict_(self, _: Any) -> None:
        items = self.marked()
        self.push(mapping(zip(items[::2], items[1::2], strict=True)))

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Object):
            target.items |= {len(target.items) + i: item for i, item in enumerate(items)}
        else:
            raise BadPickle("its pickle adds to something that is not a list")

    def set_(self, items: list[Any]) -> None:
        target = self.stack[-1]
        into = target.items if isinstance(target, Object) else target
        if not isinstance(into, dict):
            raise BadPickle("its pickle adds to something that is not a dictionary")
        into.update(mapping(zip(items[::2], items[1::2], strict=True)))

    def setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.set_([key, value])

    def call(self, _: Any) -> None:
        args, function = self.pop(), self.pop()
        self.push(call(function, args))

    def new(self, _: Any) -> None:
        args, kind = self.pop(), self.pop()
        self.push(make(kind, args))

    def build(self, _: Any) -> None:
        state = self.pop()
        set_state(self.stack[-1], state)

    def global_(self, arg: str) -> None:
        self.push(find_global(*arg.split(" ", 1)))

    def stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self.push(find_global(module, name))


# fmt: off
_VALUES = frozenset({
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
})
_MAKE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# fmt: on
_OTHER: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.discard,
    "TUPLE": _Machine.tuple_,
    "LIST": _Machine.list_,
    "FROZENSET": _Machine.list_,
    "DICT": _Machine.dict_,
    "APPEND": lambda m, _: m.extend([m.pop()]),
    "APPENDS": lambda m, _: m.extend(m.marked()),
    "ADDITEMS": lambda m, _: m.extend(m.marked()),
    "SETITEM": _Machine.setitem,
    "SETITEMS": lambda m, _: m.set_(m.marked()),
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.new,
    "BUILD": _Machine.build,
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "BINPERSID": lambda m, _: m.push(find_storage(m.pop())),
}
