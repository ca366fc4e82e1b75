"""Which code made a result: the modules in use, each with its hash (torch-free)."""

from __future__ import annotations

import ast
import contextlib
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from lensdist.utils.files import sha256

PACKAGE = Path(__file__).resolve().parents[1]


def code() -> dict[str, str]:
    """Of each module of the toolkit that this process has loaded: path below the package -> hash.

    What a run does depends on these and no others: an edit elsewhere does not make it outdated.
    """
    found = {}
    for name, module in [*sys.modules.items()]:
        if name.partition(".")[0] not in (PACKAGE.name, "__main__"):
            continue  # to look at the files of thousands takes a sixth of a second
        file = getattr(module, "__file__", None)
        path = Path(file).resolve() if file else None
        if path and path.suffix == ".py" and path.is_relative_to(PACKAGE):
            with contextlib.suppress(OSError):
                found[path.relative_to(PACKAGE).as_posix()] = sha256(path)
    return dict(sorted(found.items()))


def changed(recorded: Mapping[str, str], package: Path, old: Path | None = None) -> list[str]:
    """Modules that say something else now than was recorded, or are gone.

    Args:
        recorded: what `code` gave.
        package: the toolkit's folder, now.
        old: the folder that the result was made with, if it was kept: then comments, layout and
            docstrings make no difference.
    """
    return [name for name, digest in recorded.items() if not _same(name, digest, package, old)]


def _same(name: str, digest: str, package: Path, old: Path | None) -> bool:
    try:
        if _hash(package / name) == digest:
            return True
        return old is not None and (
            _hash(old / name) == digest and _meaning(old / name) == _meaning(package / name)
        )
    except (OSError, SyntaxError):
        return False


@cache
def _hash(path: Path) -> str:
    return sha256(path)


@cache
def _meaning(path: Path) -> str:
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # Every bare string: docstrings of modules, functions, classes and their attributes.
            node.body = [one for one in body if not _bare_string(one)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _bare_string(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
