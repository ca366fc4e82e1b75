"""Verification of sets, runs, checkpoints and exports (torch-free until there are tensors)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lensdist.data.manifest import MANIFEST, REPORT, Manifest
from lensdist.data.verification import check_file, open_arrays
from lensdist.phases import COMPLETE, completed
from lensdist.utils.errors import RunError, UserError
from lensdist.utils.files import sha256
from lensdist.utils.sealed import parse_json, read_json, unsealed

_PARTS = ("checkpoints", "data", "eval", "export", "figures", "wandb")  # the folders of a run


@dataclass(frozen=True)
class Finding:
    """The result for one item that was verified."""

    path: Path
    what: str  # a set, a file of one, a checkpoint …
    bytes: int
    wrong: str = ""  # a sentence; empty where nothing is wrong


Check = Callable[[], Iterator[Finding]]


def find(path: Path) -> list[Check]:
    """Find the sets, runs, checkpoints and exports that `path` is or holds.

    Raises:
        UserError: there is none.
    """
    found = list(_things(path))
    if not found:
        raise UserError(
            f"{path} is not a packed set, run, checkpoint or export, and holds none; give the "
            "folder of one"
        )
    return found


def _things(folder: Path) -> Iterator[Check]:
    names = _names(folder)
    if MANIFEST in names or {"images.npy", "labels.npy"} <= names:
        yield lambda: _set(folder)
    elif names & {"checkpoint.json", "state.safetensors"}:
        yield lambda: _one(folder, "checkpoint", partial(_read_checkpoint, folder))
    elif "model.safetensors" in names or ("config.json" in names and folder.name == "export"):
        yield lambda: _one(folder, "export", partial(_read_export, folder))
    elif "config.json" in names and _is_portable(folder):
        yield lambda: _one(folder, "export", partial(_check_portable, folder))
    else:
        run = COMPLETE in names or {"config.yaml", "checkpoints"} <= names
        run = run or {"config.yaml", "metrics.jsonl"} <= names
        if run:
            yield lambda: _run(folder)
        for name in sorted(names):
            below = folder / name
            hidden = name.startswith(".") or (run and name in _PARTS)
            if not hidden and below.is_dir() and not below.is_symlink():
                yield from _things(below)


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except OSError:
        return set()


def _one(path: Path, what: str, check: Callable[[], object]) -> Iterator[Finding]:
    """Yield the finding of a check that raises an error if something is wrong."""
    wrong = ""
    try:
        check()
    except (UserError, RunError) as e:
        wrong = str(e)
    except Exception as e:  # whatever a reader raises means damage
        said = " ".join(str(e).split())[:200] or type(e).__name__
        wrong = said if str(path) in said else f"{path}: {said}"
    yield Finding(path, what, _size(path), wrong)


def _size(path: Path) -> int:
    files = [p for p in path.iterdir() if p.is_file()] if path.is_dir() else [path]
    try:
        return sum(file.stat().st_size for file in files)
    except OSError:
        return 0


def _set(folder: Path) -> Iterator[Finding]:
    path = folder / MANIFEST
    [manifest] = _one(path, "manifest", lambda: Manifest.load(folder))
    yield manifest
    if manifest.wrong:
        return
    about = Manifest.load(folder)
    files = {str(name): info for name, info in about.files.items()}
    if about.report is not None:
        files[REPORT] = about.report
    whole = True
    for name, info in sorted(files.items()):
        [finding] = _one(folder / name, "file", partial(check_file, folder / name, info))
        whole &= not finding.wrong
        yield finding
    if whole:
        more = sorted(_names(folder) - {MANIFEST, REPORT, *about.files})
        also = f"; not part of it: {', '.join(more)}" if more else ""
        words = f"packed set of {about.count:,} samples, shapes and values{also}"
        yield from _one(folder, words, lambda: open_arrays(folder, about))


def _run(folder: Path) -> Iterator[Finding]:
    finished = (folder / COMPLETE).exists()
    yield from _one(
        folder / COMPLETE if finished else folder,
        "finished run" if finished else "run that is not finished",
        lambda: completed(folder),
    )
    for name, read in (("config.yaml", _read_config), ("metrics.jsonl", _read_rows)):
        if (folder / name).exists():
            yield from _one(folder / name, "file", partial(read, folder / name))
    for scores in sorted((folder / "eval").glob("*.json")):
        yield from _one(scores, "scores", partial(_read_scores, scores))
    for part in ("export", "data"):
        for check in _things(folder / part):
            yield from check()
    checkpoints = folder / "checkpoints"
    if checkpoints.exists() and not checkpoints.is_dir():
        yield Finding(checkpoints, "checkpoints", 0, f"{checkpoints} is not a folder")
    for path in sorted(checkpoints.glob("step-*")):
        yield from _one(path, "checkpoint", partial(_read_checkpoint, path))


def _read_checkpoint(folder: Path) -> None:
    from lensdist.training.checkpoint import read

    read(folder, lazy=True)


def _read_export(folder: Path) -> None:
    from lensdist.export.artifact import read_export

    read_export(folder)


def _is_portable(folder: Path) -> bool:
    try:
        return "kind" in unsealed(read_json(folder / "config.json"))
    except (OSError, ValueError):
        return False


def _check_portable(folder: Path) -> None:
    for name, digest in unsealed(read_json(folder / "config.json"))["sha256"].items():
        if sha256(folder / name) != digest:
            raise UserError(f"{folder / name} was damaged or changed after it was exported")


def _read_config(path: Path) -> None:
    from lensdist.config import load
    from lensdist.config.schema import recorded_schema

    load(path, schema=recorded_schema)


def _read_rows(path: Path) -> None:
    # A killed process may leave half a row, which the next one removes.
    *rows, _ = path.read_bytes().split(b"\n")
    for number, row in enumerate(rows, start=1):
        try:
            int(parse_json(row)["step"])
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path}:{number} is not a row of metrics") from e


def _read_scores(path: Path) -> None:
    unsealed(read_json(path))
