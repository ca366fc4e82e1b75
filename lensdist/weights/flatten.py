"""Conversion of a weight file's description to a flat dictionary of tensors (torch-free)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lensdist.weights.unpickling import BadPickle, Names, Object, Storage, Strided

_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network")
_PREFIXES = ("module.", "_orig_mod.")  # from DistributedDataParallel and torch.compile
# 16 DenseNet-201 have 20,000 names. n modules that hold each other would make 2^n names.
_MAX_NAMES = 50_000


def flatten(root: Any) -> tuple[dict[str, Strided], Object | None, tuple[str, ...]]:
    """Return the state dict that `root` is, holds, or would make.

    Returns:
        The described tensors by name; the whole module, if it is one; the names of what lies beside
        the weights.

    Raises:
        BadPickle: it does not consist of tensors.
    """
    beside: list[str] = []
    if isinstance(root, Names):
        inner = [k for k in _WRAPPERS if isinstance(root.get(k), (Names, Object))]
        inner = [k for k in inner if not _as_tensor(root[k])]
        if len(inner) > 1:
            raise BadPickle(f"it holds weights under each of {', '.join(inner)}; save one of them")
        if inner:
            beside = sorted(k[:80] for k in root if isinstance(k, str) and k != inner[0])[:100]
            root = root[inner[0]]
    module = root if _is_module(root) else None
    items: Any = root.items if isinstance(root, Object) else root
    if module is not None:
        items = dict(_state_dict(module))
    elif not isinstance(items, Names):
        raise BadPickle("it holds neither a network nor a state_dict")
    named: dict[str, Strided] = {}
    for name, value in items.items():
        tensor = _as_tensor(value)
        if not isinstance(name, str) or tensor is None:
            raise BadPickle(f"its entry {_shown(name)} is not a tensor; save the state_dict()")
        named[name] = tensor
    return {new: named[old] for old, new in plain_names(named).items()}, module, tuple(beside)


def walk(module: Object, prefix: str = "") -> Iterator[tuple[str, Object]]:
    """Give a module and all that it holds, each with the prefix of its names.

    Raises:
        BadPickle: it is not made as a module is, or has no end.
    """
    waiting = [(prefix, module)]
    count = 0
    while waiting:
        prefix, module = waiting.pop()
        children = _entries(module, "_modules")
        count += 1 + len(children)
        if count > _MAX_NAMES or len(prefix) > 1000:
            raise BadPickle("its modules hold each other without end")
        yield prefix, module
        for name, child in reversed(children.items()):
            if not _is_module(child):
                raise BadPickle(f"its {_shown(prefix + name)} is not a module")
            waiting.append((f"{prefix}{name}.", child))


def _state_dict(module: Object) -> Iterator[tuple[str, Any]]:
    """Give the names and values of `Module.state_dict()`."""
    for prefix, part in walk(module):
        unsaved = part.state.get("_non_persistent_buffers_set") or []
        if not isinstance(unsaved, list) or not all(isinstance(name, str) for name in unsaved):
            raise BadPickle("its module's buffers are not named")
        for name, value in _entries(part, "_parameters").items():
            yield prefix + name, value
        hidden = set(unsaved)
        for name, value in _entries(part, "_buffers").items():
            if name not in hidden:
                yield prefix + name, value


def _entries(module: Object, group: str) -> dict[str, Any]:
    entries = module.state.get(group) or Names()
    if not isinstance(entries, Names) or not all(isinstance(name, str) for name in entries):
        raise BadPickle(f"its module's {group} are not named")
    return {name: value for name, value in entries.items() if value is not None}


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


def _shown(name: Any) -> str:
    return (
        ascii(name[:80]) if isinstance(name, str) else f"with a key of type {type(name).__name__}"
    )
