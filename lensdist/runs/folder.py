"""Check that a folder belongs to a run: a run changes only files of its own (torch-free)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from lensdist.config import dump, load, raw, save
from lensdist.data.manifest import MANIFEST
from lensdist.phases import COMPLETE
from lensdist.utils.errors import UserError
from lensdist.utils.owners import sweep
from lensdist.utils.settings import Strict

CONFIG = "config.yaml"
_MARK = ".lock"
"""The first file that a run writes, empty. It stays, and marks the folder as a run's."""
_LOGS = (".log", ".out", ".err")
_MADE = (MANIFEST, "export", "model.safetensors")  # signs of a packed set, a run, an export


def is_run(folder: Path) -> bool:
    """Return whether a run has written here: two of its three signs, or its `COMPLETE.json`."""
    signs = (
        (folder / _MARK).is_file(),
        raw(folder / CONFIG)[0].keys() >= {"task", "run"},
        any((folder / "checkpoints").glob("step-*/checkpoint.json")),
    )
    return sum(signs) >= 2 or (folder / COMPLETE).is_file()


def check_folder(folder: Path, inputs: Mapping[str, Path | None]) -> None:
    """Refuse a folder that holds other files than a run's.

    Logs (`.log`, `.out`, `.err`), hidden files and a packed set named `data` are allowed: a run
    does not write to them.

    `inputs` are the folders that the run reads, by the name of the setting.

    Raises:
        UserError: it holds other files, or lies in an input.
    """
    if is_run(folder):
        return
    for what, path in inputs.items():
        made = path is not None and any((path / name).exists() for name in _MADE)
        if path is not None and made and _is_within(folder, path):
            raise UserError(f"run.dir {folder} lies in {what} {path}; give another run.dir")
    for path in sorted(folder.iterdir()):
        harmless = path.name.startswith(".") or path.suffix in _LOGS or path.name == "STOP"
        if not harmless and not (path.name == "data" and (path / MANIFEST).is_file()):
            raise UserError(
                f"{path} was not made by a run: a run writes only to a folder of its own; give "
                "another run.dir"
            )


def _is_within(folder: Path, path: Path) -> bool:
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(path))


def claim_folder(folder: Path, cfg: Strict) -> None:
    """Mark the folder as a run's, remove leftovers of killed processes, and write `config.yaml`.

    A `config.yaml` with the same settings is left as it is, with its comments.

    Raises:
        UserError: the file was edited, and its settings differ.
    """
    path = folder / CONFIG
    same = _says(path, cfg)
    if os.path.lexists(path) and not same and not raw(path)[1]:
        raise UserError(
            f"{path} was edited or damaged, and its settings are not this command's; give "
            f"--config {path}, or move it away"
        )
    (folder / _MARK).touch()
    for place in (folder, folder / "checkpoints", folder / "export"):
        sweep(place, locked=True)
    if not same:
        save(cfg, path)


def _says(path: Path, cfg: Strict) -> bool:
    try:
        return dump(load(path, schema=lambda raw: type(cfg))) == dump(cfg)
    except UserError:
        return False
