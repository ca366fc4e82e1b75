"""The user's own classes, by import path: `mylab.masses:MassTask` (torch-free).

A configuration or an export may name such a class. Importing it runs code, so that happens only if
the user has named its module, on the command line or in a configuration given there.
"""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from lensdist.utils.errors import UserError

_named: set[str] = set()
"""The modules that the user has named in this process."""


class Untrusted(UserError):
    """An error: a file names a module that the user has not named."""


def trust(*paths: str) -> None:
    """Allow the import of modules, given as `mylab.masses` or `mylab.masses:Mass`."""
    _named.update(path.partition(":")[0] for path in paths)


def load_object(path: str, key: str) -> Any:
    """Import an object of the user's by its path, such as `mylab.masses:MassTask`.

    `key` is the setting that names it, for the message.

    Raises:
        UserError: only a file names its module, or it cannot be imported.
    """
    module, _, name = path.partition(":")
    if module not in _named:
        raise Untrusted(
            f"{path} is code that comes with the file and is not run unless you name it; if you "
            f"trust it, add --trust {module}"
        )
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = import_module(module)
    except Exception as e:  # the user's module may raise anything when it is imported
        why = " ".join(str(e).split())[:300]
        raise UserError(
            f"{key}: cannot import {path} ({type(e).__name__}: {why}); its module must lie in the "
            "current folder, in a folder of PYTHONPATH, or be installed"
        ) from e
    if not hasattr(found, name):
        near = get_close_matches(name, vars(found), n=1)
        raise UserError(
            f"{key}: module {module} has no {name!r}{f'; did you mean {near[0]}?' if near else ''}"
        )
    return getattr(found, name)
