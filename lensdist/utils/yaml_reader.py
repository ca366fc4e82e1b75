"""A reader of plain YAML 1.2: no aliases, no tags, no repeated keys.

PyYAML's own loaders read `1e-4` as a string and `no` as False, keep the last of two equal keys,
and expand nested aliases without limit. So only its event parser is used, and values follow YAML
1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema).
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Iterator
from pathlib import Path as File
from typing import Any

import yaml
from yaml import events

from lensdist.utils.errors import UserError
from lensdist.utils.sealed import read_bytes
from lensdist.utils.yaml_nodes import COMMAND_LINE, Node, Path, Problem, Scalar, Where

MAX_BYTES = 2**20  # a configuration is a few KB; a larger file was given by mistake
MAX_PROBLEMS = 1000
MAX_DEPTH = 50  # far more than any schema needs, far below Python's recursion limit

INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
INF_OR_NAN = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


class UnreadableError(Exception):
    """An error: the text cannot be read, so its content cannot be checked."""

    def __init__(self, where: Where, text: str) -> None:
        super().__init__(text)
        self.problem = Problem(where, text)


def read_file(file: File, problems: list[Problem]) -> Node:
    """Read the mapping in `file`, and add its mistakes to `problems`."""
    here = Where(str(file))
    data = b""
    try:
        data = read_bytes(file, MAX_BYTES)
        node, found = _document(data, str(file))
        problems += found
    except FileNotFoundError as error:
        raise UnreadableError(here, "no such file") from error
    except OSError as error:
        raise UnreadableError(here, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UnreadableError(Where(str(file), line), "not UTF-8 text") from error
    except ValueError as error:
        raise UnreadableError(here, str(error)) from error
    if node is None or node.value is None:
        raise UnreadableError(here, "empty; must be a mapping of keys to values")
    if not isinstance(node.value, dict):
        raise UnreadableError(node.where, "must be a mapping of keys to values at the top")
    return Node(node.value, here)


@functools.lru_cache(maxsize=64)
def _document(data: bytes, shown: str) -> tuple[Node | None, tuple[Problem, ...]]:
    """Build the document in a file, and its mistakes; a sweep reads one file a thousand times.

    Nodes are never changed, only merged into new ones.
    """
    problems: list[Problem] = []
    node = _Builder(data.decode(), shown, problems).document()
    return node, tuple(problems)


def read_plain(file: File) -> dict[str, Any]:
    """Read the mapping in a YAML file without a schema, within the same bounds.

    Raises:
        UserError: it cannot be read; the message is the first mistake, with its line.
    """
    problems: list[Problem] = []
    try:
        node = read_file(file, problems)
    except UnreadableError as error:
        raise UserError(str(error.problem)) from error
    if problems:
        raise UserError(str(problems[0]))
    found: dict[str, Any] = node.plain()
    return found


def read_value(text: str, path: Path, problems: list[Problem]) -> Node | None:
    """Read the value of a `key=value` override: a plain scalar, quotes, or `[...]` and `{...}`.

    Other text is taken literally: `name=trial #2` keeps its second half, which YAML would drop as
    a comment, and `glob=a: b` is not a mapping.
    """
    text = text.strip()
    if not text:
        problems.append(Problem(COMMAND_LINE, "no value given; write null or '' if meant", path))
        return None
    if text[0] in "[{\"'!&*":
        return _Builder(text, COMMAND_LINE.file, problems).document(path)
    return _plain(text, COMMAND_LINE, path, problems)


def scalar(text: str) -> Scalar:
    """Convert an unquoted word by YAML 1.2's core schema: `1e-4` is a float, `no` a string.

    Raises:
        ValueError: a number is too large for an int or float field.
    """
    if text in WORDS:
        return WORDS[text]
    if INT.fullmatch(text):
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        with contextlib.suppress(OverflowError, ValueError):  # ValueError: over 4,300 digits
            number = int(text, base)
            float(number)
            return number
        raise ValueError("too large for a number")
    if FLOAT.fullmatch(text):
        if math.isinf(value := float(text)):
            raise ValueError("too large for a number; write .inf if infinity is meant")
        return value
    if INF_OR_NAN.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def _plain(text: str, where: Where, path: Path, problems: list[Problem]) -> Node:
    try:
        value = scalar(text)
    except ValueError as error:
        problems.append(Problem(where, str(error), path))
        value = None
    return Node(_unicode(value, where, path, problems), where)


def _unicode(value: Scalar, where: Where, path: Path, problems: list[Problem]) -> Scalar:
    # No file can hold a lone surrogate ("\ud800", or a byte of the command line that is not
    # UTF-8): saving the run would fail later.
    if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        problems.append(Problem(where, "holds bytes that are not Unicode text", path))
        return None
    return value


class _Builder:
    """A builder of nodes from one YAML document, by recursive descent over parser events."""

    def __init__(self, text: str, shown: str, problems: list[Problem]) -> None:
        self.shown, self.problems = shown, problems
        self.events = self._parse(text)

    def document(self, path: Path = ()) -> Node | None:
        next(self.events)  # the start of the stream
        if isinstance(next(self.events), events.StreamEndEvent):
            return None
        root = self._node(next(self.events), path)
        next(self.events)  # the end of the document
        after = next(self.events)
        if not isinstance(after, events.StreamEndEvent):
            raise UnreadableError(self._where(after), "a second document; one file holds one")
        return root

    def _parse(self, text: str) -> Iterator[events.Event]:
        try:
            yield from yaml.parse(text, Loader=yaml.SafeLoader)
        except yaml.reader.ReaderError as error:
            where = self._at_line(text.count("\n", 0, error.position) + 1)
            what = f"character U+{int(error.character):04X} is not allowed"
            raise UnreadableError(where, f"not valid YAML: {what}") from error
        except yaml.MarkedYAMLError as error:
            where = self._at_line(error.problem_mark.line + 1 if error.problem_mark else 0)
            what = ", ".join(part for part in (error.context, error.problem) if part)
            raise UnreadableError(where, f"not valid YAML: {what}") from error

    def _at_line(self, line: int) -> Where:
        return COMMAND_LINE if self.shown == COMMAND_LINE.file else Where(self.shown, line)

    def _where(self, event: events.Event) -> Where:
        return self._at_line(event.start_mark.line + 1 if event.start_mark else 0)

    def _refuse(self, where: Where, text: str, path: Path) -> None:
        self.problems.append(Problem(where, text, path))
        if len(self.problems) > MAX_PROBLEMS:
            raise UnreadableError(where, f"{text}, after {MAX_PROBLEMS} other mistakes")

    def _node(self, event: events.Event, path: Path, where: Where | None = None) -> Node:
        """Build the value that starts with `event`; `where` is the place of its key, if any."""
        where = where or self._where(event)
        if len(path) > MAX_DEPTH:
            raise UnreadableError(where, f"nested more than {MAX_DEPTH} deep")
        if not isinstance(event, events.ScalarEvent | events.CollectionStartEvent):
            name = getattr(event, "anchor", "")  # only an alias is left
            self._refuse(where, f"alias *{name} refused; write the value out", path)
            return Node(None, where)
        if event.anchor is not None:
            self._refuse(where, f"anchor &{event.anchor} refused; write values out", path)
        if event.tag is not None:
            self._refuse(where, f"tag {event.tag} refused; values are plain YAML only", path)
        if isinstance(event, events.ScalarEvent):
            if event.implicit[0]:  # not in quotes
                return _plain(event.value, where, path, self.problems)
            return Node(_unicode(event.value, where, path, self.problems), where)
        is_mapping = isinstance(event, events.MappingStartEvent)
        return Node(self._mapping(path) if is_mapping else self._sequence(path), where)

    def _sequence(self, path: Path) -> list[Node]:
        items: list[Node] = []
        while not isinstance(event := next(self.events), events.SequenceEndEvent):
            items.append(self._node(event, (*path, len(items))))
        return items

    def _mapping(self, path: Path) -> dict[str, Node]:
        mapping: dict[str, Node] = {}
        while not isinstance(event := next(self.events), events.MappingEndEvent):
            key = self._node(event, (*path, "?"))
            if not isinstance(key.value, str):
                shown = event.value if isinstance(event, events.ScalarEvent) else "of this mapping"
                self._refuse(key.where, f"key {shown} is not a string; put it in quotes", path)
                self._node(next(self.events), (*path, "?"), key.where)
                continue
            child = self._node(next(self.events), (*path, key.value), key.where)
            if key.value in mapping:
                first = mapping[key.value].where
                text = "given twice" + (f", first on line {first.line}" if first.line else "")
                self._refuse(key.where, text, (*path, key.value))
            else:
                mapping[key.value] = child
        return mapping
