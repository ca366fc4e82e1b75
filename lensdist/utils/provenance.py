"""Record of the code that made a result: the modules in use, with their hashes (torch-free)."""

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
    """Return the hashes of all modules of lensdist that this process has loaded, by path.

    A run depends on these modules only: an edit elsewhere does not make it outdated.
    """
    found = {}
    for name, module in [*sys.modules.items()]:
        if name.partition(".")[0] not in (PACKAGE.name, "__main__"):
            continue  # checking the files of thousands of modules takes a sixth of a second
        file = getattr(module, "__file__", None)
        path = Path(file).resolve() if file else None
        if path and path.suffix == ".py" and path.is_relative_to(PACKAGE):
            with contextlib.suppress(OSError):
                found[path.relative_to(PACKAGE).as_posix()] = sha256(path)
    return dict(sorted(found.items()))


def changed(recorded: Mapping[str, str], package: Path, old: Path | None = None) -> list[str]:
    """Return the modules in `package` that differ from those that `code` recorded, or are missing.

    Changes of comments, layout and docstrings do not count if `old`, the package's folder that made
    the result, was kept.
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


_hash = cache(sha256)


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
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)
