"""Bounded reading of untrusted JSON, and seals that show damage (torch-free).

A sealed file holds the SHA-256 of its other content under `seal`. The seal shows damage. It does
not show who wrote the file, so the content is validated as well.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from lensdist.utils.files import plain

LIMIT = 2**24
"""The most bytes of a JSON file: a confusion matrix of 1,000 classes takes ten million."""

_DEPTH = 50  # far more than our files need, far below Python's recursion limit
_TOO_DEEP = f"nested more than {_DEPTH} deep"
_SEAL = "seal"


def seal(value: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON object, whatever its order and layout."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping as plain JSON, with its seal."""
    facts: dict[str, Any] = plain(value)
    return {**facts, _SEAL: seal(facts)}


def unsealed(value: Mapping[str, Any], *, required: bool = False) -> dict[str, Any]:
    """Check a mapping's seal and return the mapping without it; `required`: there must be one.

    Raises:
        ValueError: the seal does not match the content.
    """
    facts = {key: item for key, item in value.items() if key != _SEAL}
    if (required or _SEAL in value) and value.get(_SEAL) != seal(facts):
        raise ValueError("altered since it was written")
    return facts


def read_bytes(path: Path, limit: int) -> bytes:
    """Read all of a regular file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than `limit` bytes, or not a regular file.
    """
    found = path.stat()  # before opening: opening a named pipe would block
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("not a regular file")
    if found.st_size <= limit:
        with path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) <= limit:
            return data
    raise ValueError(f"larger than {limit:,} bytes")


def read_json(path: Path, limit: int = LIMIT) -> dict[str, Any]:
    """Read a JSON file that holds a mapping, of at most `limit` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a file.
    """
    value = parse_json(read_bytes(path, limit))
    if not isinstance(value, dict):
        raise ValueError("not a mapping")
    return value


def parse_json(data: bytes | str) -> Any:
    """Parse JSON strictly, within what all parsers agree on.

    Raises:
        ValueError: not JSON; NaN, infinity, or a number that no float holds; text that is not
            Unicode; a key given twice; or nested more than 50 deep.
    """
    try:
        value = json.loads(
            data,
            object_pairs_hook=_unique,
            parse_constant=_number,
            parse_float=_number,
            parse_int=_whole,
        )
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    level = [value]
    for _ in range(_DEPTH):
        level = [item for each in level for item in _within(each)]
        if not level:
            return value
    raise ValueError(_TOO_DEEP)


def fits(model: type[BaseModel], value: Mapping[str, Any]) -> None:
    """Check a JSON object against a pydantic model, without any conversion.

    Raises:
        ValueError: it does not fit; the message is the first mistake.
    """
    try:
        model.model_validate(value, strict=True)
    except ValidationError as e:
        raise ValueError(first_of(e)) from e


def first_of(error: ValidationError) -> str:
    """Return the first mistake that pydantic found, as a line of bounded length."""
    first = error.errors(include_url=False, include_input=False)[0]
    text = f"{'.'.join(map(str, first['loc']))[:80]}: {first['msg'][:200]}"
    return " ".join(text.split()).removeprefix(": ")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a number of JSON that a float can hold")
    return value


def _whole(text: str) -> int:
    _number(text)
    return int(text)


def _within(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("text that is not Unicode") from None
    return value if isinstance(value, list) else ()
