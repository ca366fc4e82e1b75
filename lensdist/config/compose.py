"""Merging of files and the command line: `defaults:`, then the file, then overrides."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path as File

from lensdist.utils.errors import UserError
from lensdist.utils.yaml_nodes import COMMAND_LINE, Node, Problem, dotted, merge, report
from lensdist.utils.yaml_reader import UnreadableError, read_file, read_value

DEFAULTS = "defaults"
_NO_INDEX = "items of a list cannot be set one by one; give the whole list, as in {}=[1, 2]"


def compose(file: File | Node | None, overrides: Sequence[str], problems: list[Problem]) -> Node:
    """Return the merged tree without refused values, which are added to `problems`.

    `file` may be a tree that this made of it.

    Raises:
        UserError: a file cannot be read; without it other errors, such as missing keys, might be
            wrong.
    """
    files = _Files(problems)
    if isinstance(file, Node):
        tree = file
    else:
        tree = Node({}, COMMAND_LINE) if file is None else files.read(file)
    for text in overrides:
        tree = _override(tree, text, problems)
    if files.unreadable:
        raise UserError(report(problems))
    return tree


def composed(file: File) -> Node | None:
    """Return the tree of a file without mistakes, to `load` many times; None if it has any."""
    problems: list[Problem] = []
    try:
        tree = compose(file, (), problems)
    except UserError:
        return None
    return None if problems else tree


class _Files:
    """A reader that reads each file once, however many other files build on it."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        self.unreadable = False
        self.composed: dict[File, Node] = {}

    def read(self, file: File, users: tuple[File, ...] = (), entry: Node | None = None) -> Node:
        """Merge `file` over its defaults.

        `users` are the files that led here, outermost first; `entry` of the last one names `file`.
        """
        try:
            return self._merged(file, users)
        except UnreadableError as error:
            problem = Problem(error.problem.where, error.problem.text + _nearby(file))
            if entry is not None and not problem.where.line:  # else the base exists, and is broken
                problem = Problem(entry.where, f"'{file}': {problem.text}", (DEFAULTS,))
            return self._give_up(problem)

    def _give_up(self, problem: Problem) -> Node:
        self.unreadable = True
        self.problems.append(problem)
        return Node({}, problem.where)

    def _merged(self, file: File, users: tuple[File, ...]) -> Node:
        known = File(os.path.realpath(file))  # `resolve` raises where links lead in a circle
        if known not in self.composed:
            node = read_file(file, self.problems)
            keys = dict(node.value) if isinstance(node.value, dict) else {}
            entries = keys.pop(DEFAULTS, None)
            own = Node(keys, node.where)
            below = Node({}, node.where)
            for base in self._bases(entries) if entries else ():
                below = merge(below, self._base(base, (*users, file)))
            self.composed[known] = merge(below, own)
        return self.composed[known]

    def _bases(self, entries: Node) -> list[Node]:
        listed = entries.value if isinstance(entries.value, list) else [entries]
        named = [entry for entry in listed if isinstance(entry.value, str) and entry.value]
        if len(named) < len(listed):
            text = "must be a file name or a list of file names"
            self.problems.append(Problem(entries.where, text, (DEFAULTS,)))
        return named

    def _base(self, entry: Node, users: tuple[File, ...]) -> Node:
        base = File(os.path.normpath(users[-1].parent / str(entry.value)))
        if base.resolve() in (seen := [user.resolve() for user in users]):
            circle = " -> ".join(map(str, (*users[seen.index(base.resolve()) :], base)))
            text = f"files build on each other in a circle: {circle}"
            return self._give_up(Problem(entry.where, text, (DEFAULTS,)))
        return self.read(base, users, entry)


def _nearby(file: File) -> str:
    """Return a hint at a file in the same folder whose name is close to that of a missing file."""
    if file.exists() or not file.parent.is_dir():
        return ""
    others = {other.stem: other for other in sorted(file.parent.glob("*.y*ml"))}
    near = get_close_matches(file.stem, others, n=1)
    return f"; did you mean '{others[near[0]]}'?" if near else ""


def _override(tree: Node, text: str, problems: list[Problem]) -> Node:
    """Return `tree` with one `key.sub=value` set, or unchanged if that is malformed."""

    def refuse(why: str) -> Node:
        problems.append(Problem(COMMAND_LINE, f"{text!r}: {why}"))
        return tree

    key, equals, value = text.lstrip("-").partition("=")
    if text.startswith("-"):  # the key is checked all the same: it may be unknown
        key = key.replace("-", "_")
        refuse(f"settings are written without dashes: {key}={value}")
    path = tuple(key.strip().split("."))
    if not equals:
        return refuse("no '='; overrides are written key=value")
    if not all(path):
        return refuse("no key before '='" if not key.strip() else "an empty part in the key")
    if path[0] == DEFAULTS:
        return refuse(f"{DEFAULTS} can be set in a file only")
    if indexed := re.match(r"([^\[]+)\[\d*\]", key):
        return refuse(_NO_INDEX.format(indexed[1].strip()))
    above: Node | None = tree
    for depth, step in enumerate(path):
        if above is not None and isinstance(above.value, list):
            return refuse(_NO_INDEX.format(dotted(path[:depth])))
        above = above and above.child(step)
    try:
        node = read_value(value, path, problems)
    except UnreadableError as error:
        return refuse(error.problem.text)
    if node is None:
        return tree
    for step in reversed(path):
        node = Node({step: node}, COMMAND_LINE)
    return merge(tree, node)
