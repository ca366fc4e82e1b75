"""Finished runs, and checks of what depends on them (torch-free).

A phase is done when its run holds `COMPLETE.json`, which is written last and holds the hashes of
its results. The next phase and the launcher rely on this file only.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, field_validator

from lensdist.utils.errors import UserError
from lensdist.utils.files import sha256
from lensdist.utils.sealed import fits, read_json, unsealed

COMPLETE = "COMPLETE.json"
WEIGHTS = "model.safetensors"  # the weights of an export
CHECKPOINTS = "checkpoints"


class _Record(BaseModel):
    """The content of `COMPLETE.json`."""

    files: dict[str, str]
    """The SHA-256 of the run's files, by their path in the run."""
    config: dict[str, Any] = {}
    steps: int | None = None
    seconds: float | None = None
    data: str | None = None
    encoder: str | None = None
    code: dict[str, Any] | None = None

    @field_validator("files")
    @classmethod
    def _are_the_run_s(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\0" in name:
                raise ValueError("names a file outside the run")
        return files


def checkpoint_name(step: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"step-{step:08d}"


def saved_steps(run: Path) -> dict[int, Path]:
    """Return the folders of a run's checkpoints by their step, oldest first."""
    folders = {f.name.removeprefix("step-"): f for f in (run / CHECKPOINTS).glob("step-*")}
    return {int(n): folders[n] for n in sorted((n for n in folders if n.isdecimal()), key=int)}


def completed(run: Path, part: str = "") -> dict[str, Any] | None:
    """Return `COMPLETE.json` of a run, with its files checked; None if the run is not finished.

    Only files whose path in the run begins with `part` are checked.

    Raises:
        UserError: the run is finished, but one of its files is missing or altered.
    """
    try:
        record = unsealed(read_json(run / COMPLETE))
        fits(_Record, record)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise UserError(f"{run / COMPLETE} cannot be read: {e}") from e
    for name, digest in record["files"].items():
        if not name.startswith(part):
            continue
        path = run / name
        try:
            found = sha256(path)
        except OSError as e:
            raise UserError(f"{run} is marked complete but {name}: {e.strerror}") from e
        if found != digest:
            raise UserError(f"{path} was altered since its run was completed")
    return {"config": {}, "steps": None, **record}


def check_finished(path: Path, key: str = "") -> None:
    """Check that a model does not come from a run that is not finished.

    `path` is a run or an export, and `key` the setting that names it, for the message.

    Raises:
        UserError: the run is not finished, or is damaged.
    """
    run = path.absolute().parent if path.name == "export" else path
    begun = (run / "config.yaml").exists() or (run / "checkpoints").exists()
    if begun and (run / "export").is_dir() and completed(run) is None:
        whose = f"{key}: " if key else ""
        raise UserError(f"{whose}{run} is not finished; run its command again first")
