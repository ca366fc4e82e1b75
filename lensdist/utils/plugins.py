"""Classes of the user's own, by import path: `mylab.masses:MassTask` (torch-free).

A configuration or an export may name such a class. It is a program: it is imported only where the
user has named its module, on the command line or in a configuration given there.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from lensdist.utils.errors import UserError

_named: set[str] = set()
"""Modules that the user has named in this process."""


class Untrusted(UserError):
    """A file names a program that the user has not named."""


def trust(*paths: str) -> None:
    """Allow the import of the user's modules, given as `mylab.masses` or `mylab.masses:Mass`."""
    _named.update(path.partition(":")[0] for path in paths)


def check_trusted(path: str) -> None:
    """Refuse an import path of the user's that only a file names.

    Raises:
        UserError: the user has not named its module.
    """
    module = path.partition(":")[0]
    if module not in _named:
        raise Untrusted(
            f"{path} is a program of its maker's, which is not run unless you name it; if you "
            f"trust it, add --trust {module}"
        )


def load_object(path: str, key: str) -> Any:
    """Import an object of the user's by its path, such as `mylab.masses:MassTask`.

    Args:
        path: the module and the object's name.
        key: the setting that names it, for the message.

    Raises:
        UserError: it is not trusted, or there is no such thing.
    """
    check_trusted(path)
    module, _, name = path.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        return getattr(import_module(module), name)
    except Exception as e:  # whatever the user's module raises when it is imported
        why = " ".join(str(e).split())[:300]
        raise UserError(
            f"{key}: cannot import {path} ({type(e).__name__}: {why}); its module must lie in the "
            "current folder, in a folder of PYTHONPATH, or be installed"
        ) from e
