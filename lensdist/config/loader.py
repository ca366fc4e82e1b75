"""Loading of configurations: YAML files and `key=value` overrides to a pydantic model.

    config = load(Path("configs/mae/debug.yaml"), ["optim.lr=1e-3"], schema=MaeConfig)

A file may name others to build on, relative to itself, under `defaults:`. All mistakes in files
and on the command line are reported together, with line and likely remedy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from lensdist.config.compose import compose
from lensdist.config.explain import explain
from lensdist.utils.errors import UserError
from lensdist.utils.files import write_atomic
from lensdist.utils.yaml_nodes import Node, Problem, report
from lensdist.utils.yaml_reader import FLOAT, INT

M = TypeVar("M", bound=BaseModel)


def load(
    path: Path | Node | None,
    overrides: Sequence[str] = (),
    *,
    schema: type[M] | Callable[[dict[str, Any]], type[M]],
) -> M:
    """Load the configuration in `path` (None: overrides only) and check it against `schema`.

    `path` may be what `compose` made of a file, which is then not read again.

    `schema` is a model, or a function that chooses one from the merged raw mapping, for example
    by its `task`. It may raise UserError; "key: what is wrong" is reported with the key's line.
    Unknown keys are refused whatever the model allows, and no value is converted: "3" is not a
    number, 1.0 is not a whole number, and an unquoted `no` is a string.

    Raises:
        UserError: a line for each mistake, sorted by file and line.
    """
    problems: list[Problem] = []
    tree = compose(path, overrides, problems)
    told = {problem.path for problem in problems if problem.path}
    config: M | None = None
    try:
        model: type[M] = schema if isinstance(schema, type) else schema(tree.plain())
        # Given as JSON, because strict mode then converts lists to tuples, and strings to enums
        # and paths, which it refuses for Python objects.
        text = json.dumps(tree.plain())
        config = model.model_validate_json(text, strict=True, extra="forbid")
    except UserError as error:
        problems.append(_placed(str(error), tree))
    except ValidationError as error:
        # A value that was refused while reading is missing here, which is not a second mistake.
        problems += (one for one in explain(error, tree, model) if one.path not in told)
    if config is None or problems:
        raise UserError(report(problems))
    return config


def dump(config: BaseModel) -> str:
    """Return YAML with all settings, from which `load` makes an equal configuration."""
    # round_trip leaves out computed fields, which `load` would refuse.
    data = config.model_dump(mode="json", by_alias=True, round_trip=True)
    return _to_yaml(data)


def raw(path: Path) -> tuple[dict[str, Any], bool]:
    """Return a file's unchecked content, and whether the file is exactly as `save` writes it.

    An added comment, for example, makes it differ. For a file that cannot be read: {}, False.
    """
    problems: list[Problem] = []
    try:
        found = compose(path, (), problems).plain()
        return ({}, False) if problems else (found, path.read_text() == _to_yaml(found))
    except (UserError, OSError, ValueError, RecursionError):
        return {}, False


def _to_yaml(data: Any) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31)


def save(config: BaseModel, path: Path) -> None:
    """Write `dump(config)` to `path` atomically."""
    write_atomic(path, dump(config))


def _placed(text: str, tree: Node) -> Problem:
    """Return the error of a `schema` function, with the key's place if it starts with `key: `."""
    key, _, rest = text.partition(": ")
    if rest and (child := tree.child(key)):
        return Problem(child.where, rest, (key,))
    return Problem(tree.where, text)


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes strings that any version of YAML would read as another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # load refuses anchors

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # YAML takes U+0085 and similar characters for line breaks, which PyYAML does not restore.
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    def represent_list(self, data: Any) -> yaml.SequenceNode:
        flat = not any(isinstance(item, list | dict) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_representer(list, _Dumper.represent_list)
# SafeDumper handles the words and numbers of YAML 1.1; these are the numbers that 1.2 adds.
for _tag, _number in (("int", INT), ("float", FLOAT)):
    _Dumper.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_number.pattern})\Z"), list("-+.0123456789")
    )
