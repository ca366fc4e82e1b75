"""Runs as a table for pandas."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensdist.metrics.report import collect
from lensdist.utils.errors import UserError
from lensdist.utils.extras import needed
from lensdist.utils.sealed import read_json, unsealed

if TYPE_CHECKING:
    import pandas

ABOUT = (
    "task", "preset", "seed", "init", "steps", "seconds", "images_per_s", "complete", "problem",
)  # fmt: skip
"""What a row says of a run besides its scores, name and folder."""


def read_runs(folder: str | os.PathLike[str]) -> pandas.DataFrame:
    """Return a row for each run in a folder, and in those below it.

    Columns: `name`, `task`, `preset`, `seed`, `init`, `steps`, `seconds`, `images_per_s`,
    `complete`, `problem`; each score by split, as `test_accuracy`, with the ends of its 95 %
    interval, `test_accuracy_low` and `test_accuracy_high`; and `folder`. Where validation was not
    evaluated by itself, `val_…` is the score by which the weights were chosen.

    Raises:
        UserError: there is no run, or pandas is not installed.
    """
    pandas = needed("pandas", "lensdist.read_runs", "'lensdist[pandas]'")
    files = sorted(Path(folder).rglob("config.yaml"))
    if not files:
        raise UserError(f"{folder} holds no run: nothing below it has a config.yaml")
    return pandas.DataFrame([row_of(file.parent) for file in files])


def row_of(run: Path) -> dict[str, Any]:
    """Return a run's row of `read_runs`."""
    (found,) = collect([run])
    row = {"name": run.name, **{name: found[name] for name in ABOUT if name in found}}
    if (run / "export" / "config.json").exists():
        kept = _read(run / "export" / "config.json").get("metrics") or {}
        name = str(kept.get("selected_by", "")).removeprefix("val ")
        row |= _flat("val", {name: kept.get("val")})
    for file in sorted((run / "eval").glob("*.safetensors")):  # one for each split that was scored
        row |= _flat(file.stem, _read(file.with_suffix(".json")).get("metrics"))
    return {**row, "folder": str(run)}


def _flat(split: str, scores: Any) -> dict[str, float]:
    """Return the scores that are one number, and the ends of their intervals."""
    found: dict[str, float] = {}
    for name, value in scores.items() if isinstance(scores, dict) else ():
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{split}_{name}"] = value
            interval = scores.get(f"{name}_ci")
            if isinstance(interval, list) and len(interval) == 2:
                found |= dict(
                    zip((f"{split}_{name}_low", f"{split}_{name}_high"), interval, strict=True)
                )
    return found


def _read(path: Path) -> dict[str, Any]:
    """Read a sealed file; one that cannot be read has been named as the row's `problem`."""
    try:
        return unsealed(read_json(path))
    except (OSError, ValueError):
        return {}
