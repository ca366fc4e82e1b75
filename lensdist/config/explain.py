"""Conversion of pydantic's errors to sentences with the key, the line and the likely remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lensdist.config.other_tools import OURS, PROCESSES
from lensdist.utils.yaml_nodes import Node, Path, Problem, Where, dotted

# These replace pydantic's "Input should be ..." where it is jargon. Others are only reworded.
_WANTED = {
    "missing": "required but missing",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "none_required": "must be null",
    "finite_number": "must be a finite number",
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type"), "must be a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be a mapping"),
}


def explain(error: ValidationError, tree: Node, model: type[BaseModel]) -> list[Problem]:
    """Return one problem for each value for which `model` has refused `tree`."""
    told: dict[Path, list[tuple[Where, str, str]]] = {}
    for details in error.errors(include_url=False):
        path, where, node = _place(details, tree)
        if details["type"] == "extra_forbidden":
            text, got = _unknown_key(path, model), ""
        else:
            text, got = _sentence(details, node, path, model)
        told.setdefault(path, []).append((where, text, got))
    # pydantic reports every alternative of a union; one with an error inside was probably meant.
    outer = {path[:n] for path in told for n in range(len(path))}
    return [_joined(path, each) for path, each in told.items() if path not in outer]


def _joined(path: Path, alternatives: list[tuple[Where, str, str]]) -> Problem:
    where, first, _ = alternatives[0]
    texts = dict.fromkeys(text.removeprefix("must be ") for _, text, _ in alternatives[1:])
    got = max((got for *_, got in alternatives), key=len)
    return Problem(where, " or ".join([first, *texts]) + got, path)


def _place(details: ErrorDetails, tree: Node) -> tuple[Path, Where, Node | None]:
    """Follow an error's location to the wrong value, which is None if it is missing."""
    path: Path = ()
    node = tree
    for step in details["loc"]:
        if (child := node.child(step)) is not None:  # else it names an alternative of a union
            path, node = (*path, step), child
    if details["type"] == "missing":
        return (*path, details["loc"][-1]), node.where, None
    return path, node.where, node


def _sentence(
    details: ErrorDetails, node: Node | None, path: Path, model: type[BaseModel]
) -> tuple[str, str]:
    """Return what is wrong, and the value with a suggestion."""
    kind, context = details["type"], details.get("ctx", {})
    if kind in ("value_error", "assertion_error"):  # raised by the schema's validators
        return str(context.get("error", details["msg"])), ""
    text = _WANTED.get(kind) or re.sub(r"^\w+ should", "must", details["msg"])
    text = re.sub(r" after validation, not .*", "", text)
    options = context.get("expected")
    if options:
        text = f"must be {options}"
    if node is None:
        return text, ""
    got = f", got {_quote(node)}"
    if options:
        got += _did_you_mean(_near(str(node.value), re.findall(r"'([^']*)'", options)))
    elif kind == "string_type" and isinstance(node.value, int | float):
        got += "; put it in quotes"
    elif kind == "list_type" and isinstance(node.value, dict):
        got += "; a list is given whole, as in [1, 2]"
    elif kind in ("model_type", "model_attributes_type"):
        got += f"; its keys are set one by one, as in {dotted((*path, _keys_at(path, model)[0]))}=…"
    return text, got


def _unknown_key(path: Path, model: type[BaseModel]) -> str:
    key, here = str(path[-1]), _keys_at(path[:-1], model)
    everywhere = list(dict.fromkeys(_all_paths(model)))
    if "." in key and dotted(path) in everywhere:
        return "a dot does not nest keys in a file; write each part on its own line, indented"
    leaves = {path.rpartition(".")[2]: path for path in reversed(everywhere)}
    if key in PROCESSES:
        return "unknown key; a launcher sets it, as in `accelerate launch --num_processes 2 …`"
    if (ours := OURS.get(key.lower())) and ours in everywhere:
        return "unknown key" + _did_you_mean([ours])
    near = [path for path in everywhere if path.endswith(f".{key}")][:2] or _near(key, here)
    if not near:  # misspelt and in the wrong place
        near = [leaves[leaf] for leaf in _near(key, leaves, cutoff=0.75)]
    return "unknown key" + (_did_you_mean(near) or f"; known here: {', '.join(here)}")


def _near(word: str, words: Iterable[str], cutoff: float = 0.6) -> list[str]:
    lower = {other.lower(): other for other in words}
    return [lower[match] for match in get_close_matches(word.lower(), lower, 1, cutoff)]


def _did_you_mean(words: list[str]) -> str:
    return f"; did you mean {' or '.join(repr(word) for word in words)}?" if words else ""


def _quote(node: Node) -> str:
    value = node.plain()
    if isinstance(value, dict):
        return "a mapping"
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys_at(path: Path, model: type[BaseModel]) -> list[str]:
    """Return the keys of the section at `path`."""
    for step in path:
        if step in model.model_fields:  # else an index of a list, or a key of a mapping
            model = _section(model.model_fields[str(step)].annotation) or model
    return list(model.model_fields)


def _section(kind: Any) -> type[BaseModel] | None:
    """Return the first model in a type, such as that of `Crop | None` or `list[Crop]`."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    return next((found for inner in get_args(kind) if (found := _section(inner))), None)


def _all_paths(
    model: type[BaseModel], prefix: str = "", around: tuple[type[BaseModel], ...] = ()
) -> Iterator[str]:
    """Yield every dotted key of the schema; a model inside itself is entered once."""
    for name, field in model.model_fields.items():
        yield prefix + name
        kind = _section(field.annotation)
        one = get_origin(field.annotation) not in (list, tuple, dict)
        if kind is not None and one and kind not in around:
            yield from _all_paths(kind, f"{prefix}{name}.", (*around, kind))
