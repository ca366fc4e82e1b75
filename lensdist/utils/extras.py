"""Import a package that only some users need (torch-free)."""

from __future__ import annotations

import importlib
from typing import Any

from lensdist.utils.errors import UserError


def needed(module: str, why: str, install: str) -> Any:
    """Return a module.

    Args:
        module: its name.
        why: what needs it, as the start of a sentence.
        install: what to give to pip.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{why} needs {module.partition('.')[0]}: pip install {install}") from error
