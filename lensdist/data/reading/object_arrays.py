"""Read object-array `.npy` files without executing anything; only this module uses pickle.

DeepLenseSim's axion files are NumPy object arrays of shape (2,): the image and the axion mass.
NumPy stores them as a pickle, and `np.load` would run any code that the file's author put there.
Here

1. every opcode must be one that NumPy's own writer emits, which is checked before any is
   interpreted;
2. the names that NumPy's arrays need resolve to inert classes of this module, and all others are
   refused, so not even NumPy's C constructors run on arguments from the file;
3. the described bytes become an array only if length, shape and dtype agree. Memory is bounded by
   the size of the file, which the caller has capped, and not by what the file claims.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from lensdist.data.reading.raw import BadFile

# fmt: off
_OPCODES = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_LIST", "APPEND", "APPENDS", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1",
    "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINSTRING",
    "BINSTRING", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8", "MEMOIZE", "BINPUT",
    "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
})
# fmt: on
_MAX_OPCODES = 1000  # an axion file has about 70
_ITEM_SIZE = {f"{kind}{n}": n for kind in "fiu" for n in (1, 2, 4, 8)} | {"b1": 1, "f16": 16}


class _Described:
    """Constructor arguments and state of a dtype or an array, as in the file, not checked."""

    __slots__ = ("args", "state")

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _DType(_Described):
    __slots__ = ()


class _Array(_Described):
    __slots__ = ()


class _Name:
    """An allowed global. Its own `__setstate__` stops a file from writing to it with BUILD."""

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]) -> None:
        self._build = build

    def __call__(self, *args: Any) -> Any:
        return self._build(*args)

    def __setstate__(self, state: Any) -> None:
        raise BadFile("its pickle tries to change a constructor")


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode(text, 'latin1')`, as Python 3 writes bytes in protocol 2."""
    return text.encode("latin1")


def _frombuffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """Stand in for NumPy's form of a contiguous array in protocol 5."""
    array = _Array()
    array.state = (1, shape, dtype, order == "F", bytes(buffer))
    return array


def _scalar(dtype: Any, raw: Any) -> _Array:
    array = _Array()
    array.state = (1, (), dtype, False, raw)
    return array


_NAMES = {
    ("numpy", "ndarray"): _Name(_Array),
    ("numpy", "dtype"): _Name(_DType),
    ("_codecs", "encode"): _Name(_latin1),
    # NumPy 1 and NumPy 2 spell the same modules differently.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Name(_Array) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Name(_scalar) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Name(_frombuffer) for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise BadFile(f"its pickle asks for {module}.{name}, which no array needs") from None

    def persistent_load(self, pid: Any) -> Any:
        raise BadFile("its pickle refers to an object outside the file")


def _check_opcodes(data: bytes) -> None:
    for n, (opcode, arg, _) in enumerate(pickletools.genops(data)):
        if opcode.name not in _OPCODES:
            raise BadFile(f"its pickle uses {opcode.name}, which no array needs")
        # The interpreter's memo is an array that grows to the index given: 2^31 would be 16 GiB.
        if n >= _MAX_OPCODES or (opcode.name == "LONG_BINPUT" and int(arg or 0) >= _MAX_OPCODES):
            raise BadFile("its pickle is too long for an image and a mass")


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise BadFile("its pickle describes an array with an impossible shape")
    return shape


def _numeric(array: Any) -> npt.NDArray[Any]:
    """Make the described numeric array, if its bytes exactly fill its shape and dtype."""
    if not isinstance(array, _Array) or not isinstance(array.state, tuple) or len(array.state) != 5:
        raise BadFile("its pickle holds something other than an image and a mass")
    _, shape, dtype, fortran, raw = array.state
    if isinstance(raw, str):  # Python 2 wrote byte strings
        raw = raw.encode("latin1")
    code = dtype.args[0] if isinstance(dtype, _DType) and dtype.args else None
    order = dtype.state[1] if isinstance(getattr(dtype, "state", None), tuple) else "|"
    if code not in _ITEM_SIZE or order not in ("<", ">", "|", "="):
        raise BadFile("its pickle holds an array that is not made of real numbers")
    if not isinstance(raw, bytes) or len(raw) != math.prod(_shape(shape)) * _ITEM_SIZE[code]:
        raise BadFile("its pickle holds an array whose bytes do not fill its shape")
    flat = np.frombuffer(raw, np.dtype(order + code))
    return flat.reshape(shape, order="F" if fortran else "C")


def _mass(value: Any) -> float:
    """Return the axion mass in eV; NaN if the file holds None."""
    if value is None:
        return math.nan
    if isinstance(value, _Array):
        array = _numeric(value)
        value = array.reshape(-1)[0].item() if array.size == 1 else None
    if type(value) not in (int, float) or not (0 < value < math.inf or math.isnan(value)):
        raise BadFile("its second item is not an axion mass in eV")
    return float(value)


def parse_axion(data: bytes) -> tuple[npt.NDArray[Any], float]:
    """Read the pickle of an object array of shape (2,): the image and the axion mass.

    Args:
        data: the bytes after the `.npy` header; the caller has capped their number.

    Returns:
        The image, in the file's shape and dtype, and the mass in eV (NaN where unknown).

    Raises:
        BadFile: the pickle is anything else, damaged or hostile. None of it was executed.
    """
    try:
        _check_opcodes(data)
        root = _Unpickler(io.BytesIO(data), encoding="latin1").load()
        items = root.state[4] if isinstance(root, _Array) and len(root.state) == 5 else None
        if not isinstance(items, list) or _shape(root.state[1]) != (2,) or len(items) != 2:
            raise BadFile("its object array is not of shape (2,): an image and an axion mass")
        return _numeric(items[0]), _mass(items[1])
    except BadFile:
        raise
    except Exception as error:  # damaged pickles raise any exception
        raise BadFile(f"its pickle is damaged ({type(error).__name__})") from error


def save_axion(path: str | os.PathLike[str], image: npt.NDArray[Any], mass: float) -> None:
    """Write an axion file as DeepLenseSim does, so that simulated sets look like people's own.

    Args:
        path: the file to write; its folder exists.
        image: (H, W) or (1, H, W).
        mass: the axion mass, eV.
    """
    pair = np.empty(2, dtype=object)
    pair[0] = image
    pair[1] = mass
    with open(path, "wb") as file:
        np.save(file, pair)
