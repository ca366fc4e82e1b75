"""Configuration values with the file and line of each, and the mistakes in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

Scalar = str | int | float | bool | None
Path = tuple[str | int, ...]  # keys and list positions from the top of the configuration


class Where(NamedTuple):
    """A line of a file; line 0 stands for the file as a whole."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


COMMAND_LINE = Where("command line")


@dataclass(frozen=True)
class Node:
    """A value and its line: the line of its key in a mapping, its own line in a list."""

    value: Scalar | dict[str, Node] | list[Node]
    where: Where

    def child(self, step: str | int) -> Node | None:
        if isinstance(self.value, dict) and isinstance(step, str):
            return self.value.get(step)
        if isinstance(self.value, list) and isinstance(step, int) and step < len(self.value):
            return self.value[step]
        return None

    def plain(self) -> Any:
        """Return the value without lines, in the types of JSON."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


def merge(old: Node, new: Node) -> Node:
    """Return `old` with `new` merged over it: mappings key by key, other values replaced."""
    if not (isinstance(old.value, dict) and isinstance(new.value, dict)):
        return new
    merged = dict(old.value)
    for key, child in new.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    # `optim.lr=1` does not set `optim` itself, so errors about `optim` name the file.
    return Node(merged, old.where if new.where == COMMAND_LINE else new.where)


@dataclass(frozen=True)
class Problem:
    """One mistake, which prints as one line."""

    where: Where
    text: str
    path: Path = ()

    def __str__(self) -> str:
        # A validator's message may hold line breaks, and a mistake must stay one line.
        text = " ".join(self.text.split())
        place = f"{dotted(self.path)} ({self.where})" if self.path else str(self.where)
        return f"{place}: {text}"


def report(problems: Iterable[Problem]) -> str:
    """Return all problems as lines, by file and line, those of the command line last."""
    order = sorted(problems, key=lambda p: (p.where == COMMAND_LINE, p.where, dotted(p.path)))
    return "\n".join(map(str, order))


def dotted(path: Path) -> str:
    """Return a path as text: `("phases", 0, "optim", "lr")` as `phases[0].optim.lr`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if step.isprintable() and step else repr(step))
    return text
