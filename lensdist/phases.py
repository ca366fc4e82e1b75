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


def check_finished(path: Path, key: str = "") -> None:
    """Make sure that a model to be used is not that of a run which is still to end, or ends anew.

    Args:
        path: a run, or an export, in its run or by itself.
        key: the setting that names it, for the error.

    Raises:
        UserError: the run is not finished, or damaged.
    """
    run = path.absolute().parent if path.name == "export" else path
    begun = (run / "config.yaml").exists() or (run / "checkpoints").exists()
    if begun and (run / "export").is_dir() and completed(run) is None:
        whose = f"{key}: " if key else ""
        raise UserError(f"{whose}{run} is not finished; run its command again first")
