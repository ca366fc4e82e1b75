"""Conversion of pydantic's errors to sentences with the key, the line and the likely remedy."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

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
_OWN_WORDS = ("value_error", "assertion_error")  # raised by the schema's validators
_ABSENT = ("missing", "extra_forbidden", "union_tag_not_found")  # no value to quote


@dataclass(frozen=True)
class _Finding:
    """One error with its place in the data and in the schema."""

    path: Path
    where: Where
    node: Node | None  # the wrong value, if there is one
    owner: type[BaseModel] | None  # the innermost model around it
    unions: tuple[tuple[Path, str], ...] = ()  # the unions on the way: path, tried alternative
    rivals: tuple[Any, ...] = ()  # all alternatives of the last union
    text: str = ""
    got: str = ""  # the text after `text`: the value, and a suggestion


def explain(error: ValidationError, tree: Node, model: type[BaseModel]) -> list[Problem]:
    """Return one problem for each mistake for which `model` has refused `tree`."""
    found = []
    for details in error.errors(include_url=False):
        finding = _place(details["loc"], tree, model)
        if details["type"] == "extra_forbidden":
            found.append(replace(finding, text=_unknown_key(finding, model)))
        else:
            found.append(_tell(details, finding))
    for depth in range(max((len(one.unions) for one in found), default=0), 0, -1):
        found = _settle(found, depth)
    return [Problem(one.where, one.text + one.got, one.path) for one in found]


def _place(loc: Path, tree: Node, model: type[BaseModel]) -> _Finding:
    """Follow `loc` through data and schema: only the schema distinguishes keys from union tags."""
    node: Node | None = tree
    finding = _Finding((), tree.where, tree, None)
    kind: Any = model
    for position, step in enumerate(loc):
        members = _members(kind)
        if len(members) > 1:  # this step is the alternative that pydantic tried
            kind = _chosen(members, str(step))
            unions = (*finding.unions, (finding.path, str(step)))
            finding = replace(finding, unions=unions, rivals=tuple(members))
            continue
        child = node.child(step) if node else None
        last = position == len(loc) - 1
        if child is None and (not last or step == "[key]"):
            continue  # pydantic's marks of keys and of validators
        inner = members[0] if members else Any
        owner = inner if _is_model(inner) else finding.owner
        where = child.where if child else finding.where
        finding = replace(finding, path=(*finding.path, step), where=where, node=child, owner=owner)
        kind, node = _inside(inner, step), child
    return finding


def _tell(details: ErrorDetails, finding: _Finding) -> _Finding:
    """Return the finding with its sentence."""
    kind, context = details["type"], details.get("ctx", {})
    if kind in _OWN_WORDS:
        return replace(finding, text=str(context.get("error", details["msg"])))
    if kind.startswith("union_tag"):  # the mistake is in the key that chooses the alternative
        tag = str(context["discriminator"]).strip("'")
        chooser = finding.node.child(tag) if finding.node else None
        where = chooser.where if chooser else finding.where
        finding = replace(finding, path=(*finding.path, tag), node=chooser, where=where)
    text = _WANTED.get(kind) or re.sub(r"^\w+ should", "must", details["msg"])
    text = re.sub(r" after validation, not .*", "", text)
    options = context.get("expected_tags") or context.get("expected")
    if kind == "union_tag_not_found":
        text = _WANTED["missing"]
    elif options:
        text = f"must be {options}"
    if finding.node is None or kind in _ABSENT:
        return replace(finding, text=text)
    got = f", got {_quote(finding.node)}"
    if options:
        got += _did_you_mean(_near(str(finding.node.value), re.findall(r"'([^']*)'", options)))
    elif kind == "string_type" and isinstance(finding.node.value, int | float):
        got += "; put it in quotes"
    elif kind == "list_type" and isinstance(finding.node.value, dict):
        got += "; a list is given whole, as in [1, 2]"
    return replace(finding, text=text, got=got)


def _settle(found: list[_Finding], depth: int) -> list[_Finding]:
    """Merge the findings of each union at `depth`: pydantic reports every alternative."""
    settled = [one for one in found if len(one.unions) < depth]
    unions: dict[Any, dict[str, list[_Finding]]] = {}
    for one in found:
        if len(one.unions) == depth:
            *around, (path, label) = one.unions
            key = (tuple(around), path)
            outer = replace(one, unions=tuple(around))
            unions.setdefault(key, {}).setdefault(label, []).append(outer)
    for (_, path), alternatives in unions.items():
        # An alternative with an error inside the value was probably meant.
        inside = [ones for ones in alternatives.values() if any(o.path != path for o in ones)]
        if inside:
            fewest: list[_Finding] = min(inside, key=len)
            settled += fewest
            continue
        every = [one for ones in alternatives.values() for one in ones]
        texts = list(dict.fromkeys(one.text for one in every))
        either = " or ".join([texts[0], *(text.removeprefix("must be ") for text in texts[1:])])
        settled.append(replace(every[0], text=either, got=max((o.got for o in every), key=len)))
    return settled


def _unknown_key(finding: _Finding, model: type[BaseModel]) -> str:
    key, here = str(finding.path[-1]), list(_fields(finding.owner)) if finding.owner else []
    everywhere = list(dict.fromkeys(_all_paths(model)))
    if "." in key and dotted(finding.path) in everywhere:
        return "a dot does not nest keys in a file; write each part on its own line, indented"
    known = f"; known here: {', '.join(here)}"
    if finding.unions and finding.owner in finding.rivals:
        others = [rival for rival in finding.rivals if _is_model(rival)]
        if any(key in _fields(other) for other in others):
            return f"unknown key for '{finding.unions[-1][1]}'{known}"
    leaves = {path.rpartition(".")[2]: path for path in reversed(everywhere)}
    near = _near(key, here) + [path for path in everywhere if path.endswith(f".{key}")][:2]
    if not near:  # misspelt and in the wrong place
        near = [leaves[leaf] for leaf in _near(key, leaves, cutoff=0.75)]
    return "unknown key" + (_did_you_mean(near) or known)


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


# The functions below read type annotations, as pydantic does.


def _is_model(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields by the names that a file uses."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _members(kind: Any) -> list[Any]:
    """Return the alternatives of a union without None; the type itself if it is not a union."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        members = [member for member in get_args(kind) if member is not type(None)]
        return members if len(members) > 1 else _members(members[0])
    return [kind]


def _chosen(members: list[Any], label: str) -> Any:
    """Return the alternative with the name `label`: a discriminator value or a type name."""
    for member in members:
        kind = _members(member)[0]
        fields = _fields(kind).values() if _is_model(kind) else ()
        tags = [tag for field in fields for tag in _literals(field)]
        name = getattr(get_origin(kind) or kind, "__name__", "?")
        if label in tags or label.partition("[")[0] == name:
            return member
    return Any


def _literals(field: FieldInfo) -> tuple[Any, ...]:
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def _inside(kind: Any, step: str | int) -> Any:
    """Return the type of a model's field, or of an item of a list, tuple or mapping."""
    if _is_model(kind):
        field = _fields(kind).get(str(step))
        return field.annotation if field else Any
    items = [item for item in get_args(kind) if item is not Ellipsis]
    if get_origin(kind) is tuple and isinstance(step, int) and step < len(items):
        return items[step]
    return items[-1] if items else Any


def _all_paths(
    model: type[BaseModel], prefix: str = "", around: tuple[type[BaseModel], ...] = ()
) -> Iterator[str]:
    """Yield every dotted key of the schema; a model inside itself is entered once."""
    for name, field in _fields(model).items():
        yield prefix + name
        for kind in _members(field.annotation):
            if _is_model(kind) and kind not in around:
                yield from _all_paths(kind, f"{prefix}{name}.", (*around, kind))
