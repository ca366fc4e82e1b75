"""Write and read an exported model: its weights, and all that is needed to use them, in one folder.

export/model.safetensors   the network's weights
       config.json         task, preset, model, labels, preprocessing, metrics, and a seal
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lensdist.data.config import PREPROCESS
from lensdist.data.dataset import PackedSet
from lensdist.export.description import build
from lensdist.export.several import AnyLikeness
from lensdist.phases import COMPLETE, WEIGHTS, completed
from lensdist.tasks.registry import AnyTask
from lensdist.tasks.types import Described
from lensdist.utils.errors import UserError
from lensdist.utils.files import sha256, to_json, write_atomic
from lensdist.utils.owners import temporary
from lensdist.utils.sealed import read_json, sealed, unsealed
from lensdist.utils.tensors import (
    nonfinite,
    read_safetensors,
    read_shapes,
    write_safetensors,
)

log = logging.getLogger(__name__)

FORMAT = 1
CONFIG = "config.json"

_LIMIT = 2**22  # bytes of `config.json`: 33,000 labels take one million


def write_export(
    folder: Path,
    model: nn.Module,
    description: dict[str, Any],
    preprocess: Mapping[str, Tensor] | None = None,
    likeness: AnyLikeness | None = None,
) -> dict[str, str]:
    """Write an export; `config.json`, which holds the weights' hash, comes last.

    `preprocess` holds the preprocessing's own tensors, which are stored with the weights, as are
    those of `likeness`.

    Returns:
        The SHA-256 of each file, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().cpu() for k, v in model.state_dict().items()}
    weights |= {PREPROCESS + k: v.cpu() for k, v in (preprocess or {}).items()}
    if likeness is not None:
        weights |= likeness.tensors()
        description = {**description, "likeness": likeness.state()}
    beside = temporary(folder / WEIGHTS)
    try:
        _, digest = write_safetensors(beside, weights)
        beside.replace(folder / WEIGHTS)
    finally:
        beside.unlink(missing_ok=True)
    facts = {"format": FORMAT, **description, "sha256": {WEIGHTS: digest}}
    write_atomic(folder / CONFIG, to_json(sealed(facts)))
    return {WEIGHTS: digest, CONFIG: sha256(folder / CONFIG)}


def describe(
    preset: str, task: AnyTask, packed: PackedSet, metrics: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of an export's `config.json`, except the weights' hash."""
    return {
        "task": task.name,
        "preset": preset,
        "labels": list(task.labels),
        "preprocessing": task.preprocess.state(),
        "metrics": metrics,
        "data": {
            "fingerprint": packed.manifest.fingerprint,
            "pixel_scale_arcsec": packed.manifest.pixel_scale_arcsec,
        },
        **task.describe(),
    }


def find_export(path: Path) -> Path:
    """Return the export folder of `path`, a run or an export.

    Raises:
        UserError: it is neither.
    """
    for folder in (path, path / "export"):
        if (folder / CONFIG).exists() and (folder / WEIGHTS).exists():
            return folder
    raise UserError(f"{path} holds no exported model; give a finished run or its export/ folder")


def read_export(path: Path) -> Described:
    """Return an export's description and weights, verified, also by `COMPLETE.json` if there is
    one.

    The weights are read only after their file's header matches the described network.

    Raises:
        UserError: it is damaged, of another version, of another run, or not an export.
    """
    folder = find_export(path)
    known = _check_run(folder)
    try:
        written = read_json(folder / CONFIG, _LIMIT)
        description = unsealed(written)
        hashes = description.get("sha256")
        if not isinstance(hashes, dict) or WEIGHTS not in hashes:
            raise ValueError(f"it does not name the hash of {WEIGHTS}")
    except (OSError, ValueError) as e:
        raise UserError(f"{folder} is not a complete export: {CONFIG}: {e}") from e
    if description.get("format") != FORMAT:
        shown = str(description.get("format"))[:20]
        raise UserError(f"{folder} is of format {shown}; this version reads {FORMAT}")
    if not known and written.keys() == description.keys():
        log.warning(
            f"{folder / CONFIG} is from before exports were sealed, so damage to it "
            "cannot be noticed; `lensdist export` writes a sealed one"
        )
    try:
        size, shapes = read_shapes(folder / WEIGHTS)
        build(description, shapes)
        weights = read_safetensors(folder / WEIGHTS, size, hashes[WEIGHTS])
        if name := nonfinite(weights):
            raise ValueError(f"{name} holds NaN or infinity")
        return description, weights
    except (OSError, ValueError) as e:
        raise UserError(
            f"{folder} was damaged or changed after it was exported, or cannot be used: {e}"
        ) from e


def _check_run(folder: Path) -> bool:
    """Return whether an export belongs to a finished run that names its files.

    Raises:
        UserError: its run does not name its files.
    """
    place = Path(os.path.abspath(folder))  # resolves `.`, too
    run = place.parent
    record = completed(run, "export/") if place.name == "export" else None
    if record is None:
        return False
    if not {f"export/{name}" for name in (CONFIG, WEIGHTS)} <= record["files"].keys():
        raise UserError(f"{run / COMPLETE} does not name the files of {folder}")
    return True
