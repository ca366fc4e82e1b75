"""Conversion of a weight file's description to a flat dictionary of tensors (torch-free)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lensdist.weights.unpickling import BadPickle, Names, Object, Storage, Strided

_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network")
_PREFIXES = ("module.", "_orig_mod.")  # from DistributedDataParallel and torch.compile
# 16 DenseNet-201 have 20,000 names. n modules that hold each other would make 2^n names.
_MAX_NAMES = 50_000
_MAX_DEPTH = 100


@dataclass
class Flat:
    """The described tensors by name, and the file's other content, as in `files.WeightFile`."""

    tensors: dict[str, Strided] = field(default_factory=dict)
    classes: set[str] = field(default_factory=set)
    beside: tuple[str, ...] = ()
    module: Object | None = None


def flatten(root: Any) -> Flat:
    """Return the state dict that `root` is, holds, or would make.

    Raises:
        BadPickle: it does not consist of tensors.
    """
    flat = Flat()
    if isinstance(root, Names):
        inner = [k for k in _WRAPPERS if isinstance(root.get(k), (Names, Object))]
        inner = [k for k in inner if not _as_tensor(root[k])]
        if len(inner) > 1:
            raise BadPickle(f"it holds weights under each of {', '.join(inner)}; save one of them")
        if inner:
            beside = sorted(k[:80] for k in root if isinstance(k, str) and k != inner[0])
            flat.beside = tuple(beside[:100])
            root = root[inner[0]]
    if _is_module(root):
        flat.module = root
        pairs: Iterable[tuple[Any, Any]] = _walk(root, flat.classes, [0])
    else:
        items = root.items if isinstance(root, Object) else root
        if not isinstance(items, Names):
            raise BadPickle("it holds neither a network nor a state_dict")
        pairs = items.items()
    named: dict[str, Strided] = {}
    for name, value in pairs:
        tensor = _as_tensor(value)
        if not isinstance(name, str) or tensor is None:
            raise BadPickle(f"its entry {_shown(name)} is not a tensor; save the state_dict()")
        named[name] = tensor
    flat.tensors = {short: named[name] for name, short in plain_names(named).items()}
    return flat


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Return each tensor's name without the prefixes of wrappers.

    Raises:
        BadPickle: there is none, there are too many, or one is no name of a tensor.
    """
    found = {name: name for name in names}
    if not found:
        raise BadPickle("it holds no weights")
    if len(found) > _MAX_NAMES:
        raise BadPickle(f"it names more than {_MAX_NAMES:,} tensors")
    for name in found:
        if not name.isprintable() or len(name) > 500:  # messages print names
            raise BadPickle(f"its tensor {_shown(name)} has an impossible name")
    for prefix in _PREFIXES * 3:
        if all(short.startswith(prefix) for short in found.values()):
            found = {name: short.removeprefix(prefix) for name, short in found.items()}
    return found


def _is_module(value: Any) -> bool:
    state = value.state if isinstance(value, Object) else None
    return isinstance(state, Names) and {"_parameters", "_modules"} <= state.keys()


def _as_tensor(value: Any) -> Strided | None:
    """Return a described tensor, also in PyTorch's format before 0.4; None if it is not one."""
    match value:
        case Strided() as tensor:
            return tensor
        case Object(args=(Strided() as tensor, *_)):
            return tensor
        case Object(state=(Strided() as tensor, _, _, _, _)):
            return tensor
        case Object(state=(Storage() as storage, offset, size, stride)):
            return Strided(storage, offset, size, stride)
    return None


def _walk(
    module: Object, classes: set[str], count: list[int], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Any]]:
    """Give the names and values of `Module.state_dict()`."""
    state = module.state
    parameters, buffers, modules = (
        _entries(state, group) for group in ("_parameters", "_buffers", "_modules")
    )
    classes.add(module.kind)
    count[0] += len(parameters) + len(buffers) + len(modules)
    if depth > _MAX_DEPTH or len(prefix) > 1000 or count[0] > _MAX_NAMES:
        raise BadPickle("its modules hold each other without end")
    unsaved = state.get("_non_persistent_buffers_set") or []
    if not isinstance(unsaved, list) or not all(isinstance(name, str) for name in unsaved):
        raise BadPickle("its module's buffers are not named")
    saved = {name: value for name, value in buffers.items() if name not in set(unsaved)}
    for name, value in (*parameters.items(), *saved.items()):
        if value is not None:
            yield prefix + name, value
    for name, child in modules.items():
        if child is not None:
            if not _is_module(child):
                raise BadPickle(f"its {_shown(prefix + name)} is not a module")
            yield from _walk(child, classes, count, f"{prefix}{name}.", depth + 1)


def _entries(state: Names, group: str) -> Names:
    entries = state.get(group) or Names()
    if not isinstance(entries, Names) or not all(isinstance(name, str) for name in entries):
        raise BadPickle(f"its module's {group} are not named")
    return entries


def _shown(name: Any) -> str:
    return (
        ascii(name[:80]) if isinstance(name, str) else f"with a key of type {type(name).__name__}"
    )
