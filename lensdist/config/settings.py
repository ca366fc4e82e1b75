"""Lists of all settings of a task, with type, default and meaning (torch-free)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from lensdist.config.schema import run_schema


class Setting(NamedTuple):
    """One key of a configuration."""

    key: str
    """The dotted key, such as `optim.lr`."""
    type: str
    default: str
    meaning: str


def settings(task: str, values: dict[str, Any] | None = None) -> list[Setting]:
    """List all settings of a task, in the order of a configuration.

    The values of a configuration, if given, are shown in place of the defaults.

    Raises:
        UserError: there is no such task.
    """
    schema = run_schema(task).model_json_schema()
    return list(_settings(schema, schema.get("$defs", {}), "", values))


def markdown(tasks: list[str]) -> str:
    """Return all settings as Markdown tables: those of every run, then those of each task."""
    each = {task: settings(task) for task in tasks}
    first, *others = each.values()
    shared = [one for one in first if all(one in other for other in others)]
    parts = [
        "# Settings",
        "This page lists all keys of a configuration. `lensdist settings --markdown` makes it, and "
        "`lensdist settings TASK` or `lensdist settings TASK/PRESET` prints the keys of a task. "
        "Set keys in a file or on the command line: `lensdist train mae/debug optim.lr=1e-3`.",
        "## Every run",
        _table(shared),
    ]
    for task, own in each.items():
        parts += [f"## Task `{task}`", _table([one for one in own if one not in shared])]
    return "\n\n".join(parts) + "\n"


def _table(rows: list[Setting]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for row in rows:
        kind, meaning = (text.replace("|", "\\|") for text in (row.type, row.meaning))
        lines.append(f"| `{row.key}` | {kind} | `{row.default}` | {meaning} |")
    return "\n".join(lines)


def _settings(
    schema: dict[str, Any], parts: dict[str, Any], prefix: str, values: Any
) -> Iterator[Setting]:
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        key, inner = f"{prefix}{name}", _part(field, parts)
        value = values.get(name) if isinstance(values, dict) else None
        if inner is not None and "properties" in inner:
            below = value if isinstance(values, dict) else field.get("default")
            yield from _settings(inner, parts, f"{key}.", below)
            continue
        if isinstance(values, dict) and name in values:
            shown = json.dumps(value)
        else:
            shown = "required" if name in required else json.dumps(field.get("default"))
        yield Setting(key, _type(field, parts), shown, field.get("description", ""))


def _part(field: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any] | None:
    """Return the section that a field refers to, if it is one."""
    return parts[field["$ref"].rpartition("/")[2]] if "$ref" in field else None


def _type(field: dict[str, Any], parts: dict[str, Any]) -> str:
    if choices := field.get("anyOf"):
        return " or ".join(_type(choice, parts) for choice in choices)
    if "const" in field:
        return str(field["const"])
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if (inner := _part(field, parts)) is not None:
        return "section" if "properties" in inner else _type(inner, parts)
    kind = field.get("type", "any")
    if kind == "array":
        return f"list of {_type(field.get('items', {}), parts)}"
    if kind == "object":
        return f"mapping to {_type(field.get('additionalProperties') or {}, parts)}"
    names = {"integer": "whole number", "number": "number", "boolean": "true | false"}
    names |= {"string": "path" if field.get("format") == "path" else "text"}
    return str(names.get(kind, kind)) + _bounds(field)


def _bounds(field: dict[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    parts = [f"{sign} {_number(field[key])}" for key, sign in signs.items() if key in field]
    return f" {' and '.join(parts)}" if parts else ""


def _number(value: float) -> str:
    return f"{value:.0e}".replace("+", "") if abs(value) >= 1e6 else f"{value:g}"
