"""Settings of `lensdist bench speed`; each field is a flag (torch-free)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from lensdist.utils.errors import UserError
from lensdist.utils.sealed import read_json
from lensdist.utils.settings import Strict

RESULTS = "speed.json"


class SpeedBench(Strict):
    """Settings of a measurement of a run's speed."""

    config: Path = Field(description="configuration of the run")
    overrides: tuple[str, ...] = Field((), description="settings of the run")
    out: Path = Field(description="folder for the results, and for simulated images")
    windows: int = Field(5, ge=5, description="timed stretches, and rounds of a comparison")
    window_steps: int | None = Field(
        None, ge=1, description="optimizer steps of a window (default: 4 on a CPU, 50 on a GPU)"
    )
    beside: bool = Field(False, description="compare with other ways to train the same network")
    ladder: bool = Field(False, description="measure one switch off, or on, at a time")
    to: float | None = Field(None, description="train until the validation score reaches this")
    single: Path | None = Field(None, description="results of one process, for the efficiency")


def single_rate(path: Path) -> dict[str, Any]:
    """Return the figures of an earlier run of one process.

    Raises:
        UserError: it is not such a file.
    """
    path = path / RESULTS if path.is_dir() else path
    try:
        found: dict[str, Any] = read_json(path)["figures"]
        known = found["processes"], float(found["images_per_s_per_device"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(
            f"--single: {path} holds no figures of `lensdist bench speed`; give its {RESULTS}"
        ) from e
    if known[0] != 1:
        raise UserError(f"--single: {path} is of {known[0]} processes; give that of one")
    return found
