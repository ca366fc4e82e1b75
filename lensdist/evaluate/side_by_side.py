"""What `lensdist report` shows of runs beyond their scores (torch-free, but for the comparison)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lensdist.config import load
from lensdist.config.presets import preset_file
from lensdist.config.schema import schema_of
from lensdist.metrics.cards import Singles
from lensdist.metrics.page import Run
from lensdist.phases import completed
from lensdist.tasks.registry import built_in, task_class
from lensdist.tracking import metrics_log
from lensdist.utils.errors import UserError
from lensdist.utils.yaml_reader import read_plain

_OWN = ("run.dir", "data.path", "encoder", "members_from")  # differ in every run
_FACTS = ("steps", "seconds", "images", "metrics", "data", "encoder", "weights")


def shown(run: Path, row: Mapping[str, Any], *, images: bool = True) -> Run:
    """Return what the page shows of a run; what cannot be read is left out.

    Args:
        run: its folder.
        row: its row of the table.
        images: whether to show single images, which takes the network and the data.
    """
    singles = Singles()
    if images and (run / "eval" / "test.safetensors").exists():
        from lensdist.evaluate.gallery import single_images

        singles = single_images(run)
    settings = _settings(run)
    try:
        done = completed(run) or {}
    except UserError:
        done = {}
    return Run(
        name=run.name,
        row=row,
        rows=metrics_log.read(run / "metrics.jsonl"),
        figures=sorted((run / "figures").glob("*.png")),
        changed=_changed(settings),
        facts={"folder": str(run), **{k: done[k] for k in _FACTS if done.get(k)}},
        singles=singles,
    )


def compare(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Return paired comparisons of runs on the images that all of a task were scored on.

    Runs that differ in the seed alone are one setting.

    Raises:
        UserError: outputs of single images were changed since they were scored.
    """
    from lensdist.metrics.images import compared

    named: dict[str, str] = {}
    found = []
    for run in runs:
        settings = _flat(_settings(run))
        if settings.get("task") not in built_in() or not (run / "eval").is_dir():
            continue
        same = {k: v for k, v in settings.items() if k not in ("seed", *_OWN)}
        same["start"] = settings.get("encoder") is not None
        name = named.setdefault(json.dumps(same, sort_keys=True, default=str), run.name)
        found.append((name, run, task_class(settings["task"])))
    try:
        return compared(found)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"outputs of single images cannot be used: {error}; score again") from error


def _settings(run: Path) -> dict[str, Any]:
    try:
        return read_plain(run / "config.yaml")
    except UserError:
        return {}


def _changed(settings: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ from those of the preset that the run names."""
    try:
        file = preset_file(f"{settings.get('task')}/{settings.get('preset')}")
        preset = load(file, schema=schema_of)
    except UserError:
        return {}
    before, now = _flat(preset.model_dump(mode="json", by_alias=True)), _flat(settings)
    return {
        key: (before.get(key), now.get(key))
        for key in dict.fromkeys([*now, *before])
        if before.get(key) != now.get(key) and key not in _OWN
    }


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
