"""Write and read checkpoints: one safetensors file and one JSON, complete or absent, no pickle.

    checkpoints/step-00000400/state.safetensors   every tensor, by name
                              checkpoint.json     step, scalars, size and SHA-256 of the tensors,
                                                  and the SHA-256 of this JSON itself

They are written to a temporary folder, fsynced and renamed; only then are older ones pruned.
Anybody can compute a valid seal, so the content of a sealed checkpoint is checked too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from lensdist.phases import checkpoint_name
from lensdist.utils.errors import RunError, UserError
from lensdist.utils.files import fsync, sync
from lensdist.utils.owners import remove, sweep, temporary
from lensdist.utils.sealed import fits, read_json, seal, unsealed
from lensdist.utils.tensors import read_safetensors, read_shapes, write_safetensors

FORMAT = 1
_TENSORS = "state.safetensors"
_MANIFEST = "checkpoint.json"
_FOLDER = re.compile(r"step-(\d{8,15})")
_LIMIT = 2**26  # bytes of a manifest: it holds the losses since the last row of metrics.jsonl


class Damaged(Exception):
    """The error of a damaged checkpoint; the message gives the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """A state that was saved.

    Attributes:
        step: optimizer steps done.
        tensors: by name, on the CPU.
        meta: everything that is not a tensor.
        path: where it was read from.
    """

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    path: Path


class _File(BaseModel):
    bytes: int = Field(ge=0)
    sha256: str


class _Manifest(BaseModel):
    """The content of `checkpoint.json`, besides its seal."""

    model_config = ConfigDict(extra="forbid")

    format: int
    step: int = Field(ge=0, lt=2**53)
    files: dict[str, _File]
    meta: dict[str, Any]


def write(root: Path, step: int, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> Path:
    """Save a step's state under `root` completely, or not at all.

    Raises:
        OSError: the disk is full, read-only or gone; older checkpoints are untouched.
    """
    root.mkdir(parents=True, exist_ok=True)
    final = root / checkpoint_name(step)
    sweep(root, locked=True)  # leftovers of killed processes may be filling the disk
    beside = temporary(final)
    try:
        beside.mkdir()
        size, digest = write_safetensors(beside / _TENSORS, tensors)
        manifest = {
            "format": FORMAT,
            "step": step,
            "files": {_TENSORS: {"bytes": size, "sha256": digest}},
            "meta": meta,
        }
        with (beside / _MANIFEST).open("w") as f:
            json.dump({**manifest, "seal": seal(manifest)}, f, indent=1, allow_nan=False)
            f.flush()
            sync(f.fileno())
        fsync(beside)
        if os.path.lexists(final):  # a replay of the same step after a resume from before it
            old = temporary(final)
            final.rename(old)
            beside.rename(final)
            remove(old)
        else:
            beside.rename(final)
    except BaseException:
        remove(beside)
        raise
    fsync(root)
    return final


def read(path: Path, check: Callable[[Checkpoint], None] | None = None) -> Checkpoint:
    """Read and verify one checkpoint.

    Args:
        path: its folder.
        check: raises `Damaged` for a state that cannot be used. It is called first with the tensors
            on the meta device, to avoid reading such a state, and again after reading.

    Raises:
        Damaged: a file is missing, torn or altered, or its content is not a checkpoint's.
    """
    check = check or (lambda found: None)
    at = path / _MANIFEST
    try:
        manifest = unsealed(read_json(at, _LIMIT), required=True)
        if manifest.get("format") != FORMAT:
            raise ValueError(f"format {str(manifest.get('format'))[:20]} is not {FORMAT}")
        fits(_Manifest, manifest)
        step, meta, wanted = manifest["step"], manifest["meta"], manifest["files"][_TENSORS]
        named = _FOLDER.fullmatch(path.name)
        if named and int(named[1]) != step:
            raise ValueError(f"is of step {step}, not of the step in its folder's name")
        at = path / _TENSORS
        size, shapes = read_shapes(at)
        if size != wanted["bytes"]:
            raise ValueError(f"{size} bytes instead of {wanted['bytes']}")
        check(Checkpoint(step, shapes, meta, path))
        found = Checkpoint(step, read_safetensors(at, size, wanted["sha256"]), meta, path)
    except OSError as e:
        raise Damaged(f"{at}: {e.strerror}") from e
    except (ValueError, LookupError) as e:
        raise Damaged(f"{at}: {e}") from e
    check(found)
    return found


def steps(root: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints under `root`, sorted by step and not by time.

    Raises:
        UserError: `root` cannot be read, or is a file.
    """
    try:
        return _steps(root)
    except OSError as e:
        raise UserError(f"{root}, where checkpoints are kept: {e.strerror}; move it away") from e


def _steps(root: Path) -> list[tuple[int, Path]]:
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in root.iterdir():
            match = _FOLDER.fullmatch(path.name)
            if match and path.is_dir():
                found.append((int(match[1]), path))
    return sorted(found)


def newest(
    root: Path, check: Callable[[Checkpoint], None] | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest good checkpoint (`check` as in `read`), and errors of damaged newer ones.

    Raises:
        RunError: there are checkpoints, but none is good. Only the user may decide to start
            again from step 0.
    """
    damaged: list[str] = []
    found = steps(root)
    for _, path in reversed(found):
        try:
            return read(path, check), damaged
        except Damaged as e:
            damaged.append(str(e))
    if found:
        raise RunError(
            f"none of the {len(found)} checkpoints in {root} is whole ({damaged[0]}); "
            "move the folder away to start again from step 0"
        )
    return None, damaged


def prune(root: Path, saved: int, keep: int, protect: set[int]) -> None:
    """Delete all checkpoints except the newest `keep` up to step `saved` and the protected steps.

    Those after `saved`, the step just written, are deleted too: the run was resumed from an earlier
    step, because they were damaged or the user asked for it. They would displace good ones as the
    newest.
    """
    found = _steps(root)
    kept = {*[step for step, _ in found if step <= saved][-keep:], *protect}
    for step, path in found:
        if step not in kept:
            # Rename first: a reader must never find half of a checkpoint by this name.
            doomed = temporary(path)
            path.rename(doomed)
            remove(doomed)
