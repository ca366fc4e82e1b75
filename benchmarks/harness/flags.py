"""Make command lines from settings classes: one flag per field (torch-free)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from lensdist.utils.errors import UserError
from lensdist.utils.settings import Strict

T = TypeVar("T", bound=Strict)


def parse(schema: type[T], argv: Sequence[str], prog: str, about: str) -> T:
    """Read the settings of a benchmark from its command line.

    Args:
        schema: their class; a field named `overrides` takes all words that are not flags.
        argv: the words.
        prog: the command that the help shows.
        about: its description and examples.

    Raises:
        UserError: a value is wrong.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=prog, description=about, formatter_class=raw)
    for name, field in schema.model_fields.items():
        flag, about = f"--{name.replace('_', '-')}", _about(field)
        if name == "overrides":
            parser.add_argument(name, nargs="*", metavar="key=value", help=about)
        elif field.annotation is bool:
            parser.add_argument(flag, action="store_true", help=about)
        else:
            kind: Any = _words if _several(field.annotation) else str
            metavar = "A,B,…" if kind is _words else "X"
            required = field.is_required()
            parser.add_argument(flag, type=kind, required=required, metavar=metavar, help=about)
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value}
    try:
        return schema(**given)
    except ValidationError as error:
        first = error.errors()[0]
        flag = f"--{first['loc'][0]}: ".replace("_", "-") if first["loc"] else ""
        raise UserError(flag + first["msg"].removeprefix("Value error, ")) from error


def _about(field: FieldInfo) -> str:
    about, default = field.description or "", field.default
    if field.is_required() or default in (None, (), False):
        return about
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{about} (default: {shown})"


def _several(annotation: Any) -> bool:
    return get_origin(annotation) is tuple or any(map(_several, get_args(annotation)))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))
