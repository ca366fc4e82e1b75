"""One command at a time sends phases of a chain."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from lensdist.runs.lock import held
from lensdist.utils.errors import Busy, UserError


@contextlib.contextmanager
def taken(state: Path) -> Iterator[None]:
    """Take the turn to send phases whose launcher's folder is `state`; it ends with the process.

    Raises:
        UserError: another command has it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(state))
        except Busy as e:
            raise UserError(
                f"another command is sending phases of {state.parent} at this moment; give this "
                "one again when that one has ended"
            ) from e
        yield
