"""What makes a folder a run's own, so that a run touches only what a run has made (torch-free)."""

from __future__ import annotations

import os
from pathlib import Path

from lensdist.config import dump, load, raw, save
from lensdist.config.schema import BaseRun, recorded_schema
from lensdist.data.manifest import MANIFEST
from lensdist.errors import UserError
from lensdist.owners import sweep
from lensdist.phases import COMPLETE

CONFIG = "config.yaml"
_MARK = ".lock"
"""The first file that a run writes, empty. It stays, and says that the folder is a run's."""
_LOGS = (".log", ".out", ".err")
_MADE = (MANIFEST, "export", "model.safetensors")  # signs of a packed set, a run, an export


def is_run(folder: Path) -> bool:
    """Whether a run has written here: two of its three signs are there, or its last word."""
    signs = (
        (folder / _MARK).is_file(),
        raw(folder / CONFIG)[0].keys() >= {"task", "run"},
        any((folder / "checkpoints").glob("step-*/checkpoint.json")),
    )
    return sum(signs) >= 2 or (folder / COMPLETE).is_file()


def check_folder(cfg: BaseRun) -> None:
    """Refuse a folder for a run that holds anything but a run.

    Logs (`.log`, `.out`, `.err`), hidden files and a packed set named `data` may lie there: a run
    writes to no such file.

    Raises:
        UserError: it holds other files, or lies in the data.
    """
    folder = cfg.run.dir
    if is_run(folder):
        return
    for what, path in (("data.path", cfg.data.path), ("encoder", getattr(cfg, "encoder", None))):
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


def claim_folder(cfg: BaseRun) -> None:
    """Mark the folder as a run's, remove what killed lives left, and write `config.yaml`.

    A `config.yaml` that says the same already is left as it is, comments and all.

    Raises:
        UserError: somebody has edited it, and it says something else.
    """
    folder = cfg.run.dir
    path = folder / CONFIG
    same = _says(path, cfg)
    if os.path.lexists(path) and not same and not raw(path)[1]:
        raise UserError(
            f"{path} was edited or damaged, and does not say what this command does; give "
            f"--config {path}, or move it away"
        )
    (folder / _MARK).touch()
    for place in (folder, folder / "checkpoints", folder / "export"):
        sweep(place, locked=True)
    if not same:
        save(cfg, path)


def _says(path: Path, cfg: BaseRun) -> bool:
    try:
        return dump(load(path, schema=recorded_schema)) == dump(cfg)
    except UserError:
        return False
