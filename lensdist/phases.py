"""Finished runs, and what depends on them (torch-free).

A phase is done when its run holds `COMPLETE.json`, written last, with the hashes of what it made.
The next phase, and the launcher, believe only that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lensdist.errors import UserError
from lensdist.files import sha256

COMPLETE = "COMPLETE.json"


def completed(run: Path) -> dict[str, Any] | None:
    """What `COMPLETE.json` of a run says; None where the run is not finished.

    Raises:
        UserError: the run says that it is finished, but a file of it is missing or altered.
    """
    try:
        record: dict[str, Any] = json.loads((run / COMPLETE).read_text())
        files = dict(record["files"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{run / COMPLETE} cannot be read: {e}") from e
    for name, digest in files.items():
        path = run / name
        try:
            found = sha256(path)
        except OSError as e:
            raise UserError(f"{run} is marked complete but {name}: {e.strerror}") from e
        if found != digest:
            raise UserError(f"{path} was altered since its run was completed")
    return record
