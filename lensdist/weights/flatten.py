"""Conversion of a weight file's description to a flat dictionary of tensors (torch-free)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lensdist.weights.described import BadPickle, Object, Storage, Strided

_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network")
_PREFIXES = ("module.", "_orig_mod.")  # from DistributedDataParallel and torch.compile
# 16 DenseNet-201 have 20,000 names. n modules that hold each other would make 2^n names.
_MAX_NAMES = 50_000
_MAX_DEPTH = 100


@dataclass(frozen=True)
class Flat:
    """The described tensors by name, and the file's other content, as in `pth.Pth`."""

    tensors: dict[str, Strided]
    kind: Literal["module", "state_dict"]
    classes: tuple[str, ...]
    beside: tuple[str, ...]
    module: Object | None


def flatten(root: Any) -> Flat:
    """Return the state dict that `root` is, holds, or would make.

    Raises:
        BadPickle: it does not consist of tensors.
    """
    beside: tuple[str, ...] = ()
    if isinstance(root, dict) and not _is_module(root):
        inner = [k for k in _WRAPPERS if isinstance(root.get(k), (dict, Object))]
        inner = [k for k in inner if not _as_tensor(root[k])]
        if len(inner) > 1:
            raise BadPickle(f"it holds weights under each of {', '.join(inner)}; save one of them")
        if inner:
            beside = tuple(
                sorted(k[:80] for k in root if isinstance(k, str) and k != inner[0])[:100]
            )
            root = root[inner[0]]
    if _is_module(root):
        walk = _Walk()
        named = dict(walk.tensors(root, "", 0))
        kind: Literal["module", "state_dict"] = "module"
        classes = tuple(sorted(walk.classes))
    else:
        items = root.items if isinstance(root, Object) else root
        if not isinstance(items, dict):
            raise BadPickle("it holds neither a network nor a state_dict")
        if len(items) > _MAX_NAMES:
            raise BadPickle(f"it names more than {_MAX_NAMES:,} tensors")
        named = {}
        for key, value in items.items():
            tensor = _as_tensor(value)
            if not isinstance(key, str) or tensor is None:
                raise BadPickle(
                    f"its entry {_shown(key)} is not a tensor; save the state_dict() alone"
                )
            named[key] = tensor
        kind, classes = "state_dict", ()
    if not named:
        raise BadPickle("it holds no weights")
    odd = next((name for name in named if not name.isprintable() or len(name) > 500), None)
    if odd is not None:  # messages print names, which may hold control characters
        raise BadPickle(f"its tensor {_shown(odd)} has an impossible name")
    module = root if kind == "module" else None
    return Flat(_without_prefixes(named), kind, classes, beside, module)


def _is_module(value: Any) -> bool:
    state = value.state if isinstance(value, Object) else None
    return isinstance(state, dict) and {"_parameters", "_modules"} <= state.keys()


def _as_tensor(value: Any) -> Strided | None:
    """Return a described tensor, also in PyTorch's format before 0.4; None if it is not one."""
    if isinstance(value, Strided):
        return value
    if not isinstance(value, Object):
        return None
    if value.args and isinstance(value.args[0], Strided):
        return value.args[0]
    state = value.state
    if isinstance(state, tuple) and len(state) == 5 and isinstance(state[0], Strided):
        return state[0]
    if isinstance(state, tuple) and len(state) == 4 and isinstance(state[0], Storage):
        return Strided(*state)
    return None


class _Walk:
    """A walk over described modules that gives the names of `Module.state_dict()`."""

    def __init__(self) -> None:
        self.classes: set[str] = set()
        self.names = 0

    def tensors(self, module: Object, prefix: str, depth: int) -> Iterator[tuple[str, Strided]]:
        if depth > _MAX_DEPTH or len(prefix) > 1000:
            raise BadPickle("its modules hold each other without end")
        self.classes.add(module.kind)
        state = module.state
        unsaved = state.get("_non_persistent_buffers_set") or []
        if not isinstance(unsaved, list) or not all(isinstance(name, str) for name in unsaved):
            raise BadPickle("its module's buffers are not named")
        unsaved = set(unsaved)
        for group in ("_parameters", "_buffers"):
            for name, value in self._entries(state, group):
                if value is None or (group == "_buffers" and name in unsaved):
                    continue
                tensor = _as_tensor(value)
                if tensor is None:
                    raise BadPickle(f"its {_shown(prefix + name)} is not a tensor")
                yield prefix + name, tensor
        for name, child in self._entries(state, "_modules"):
            if child is None:
                continue
            if not _is_module(child):
                raise BadPickle(f"its {_shown(prefix + name)} is not a module")
            yield from self.tensors(child, f"{prefix}{name}.", depth + 1)

    def _entries(self, state: dict[Any, Any], group: str) -> list[tuple[str, Any]]:
        entries = state.get(group) or {}
        self.names += len(entries)
        if self.names > _MAX_NAMES:
            raise BadPickle("its modules hold each other without end")
        if not isinstance(entries, dict) or not all(isinstance(name, str) for name in entries):
            raise BadPickle(f"its module's {group} are not named")
        return list(entries.items())


def _without_prefixes(tensors: dict[str, Strided]) -> dict[str, Strided]:
    for prefix in _PREFIXES * 3:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
    return tensors


def _shown(name: Any) -> str:
    return (
        ascii(name[:80]) if isinstance(name, str) else f"with a key of type {type(name).__name__}"
    )
