"""Write and read checkpoints: safetensors and one JSON, complete or absent, no pickle.

    checkpoints/step-00000400/state.safetensors   every tensor, by name; or a file for each process
                                                  (`lensdist/training/shares.py`)
                              checkpoint.json     step, scalars, size and SHA-256 of these files,
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

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from lensdist.distributed.context import DistributedContext
from lensdist.phases import checkpoint_name
from lensdist.training import shares
from lensdist.utils.errors import RunError, UserError
from lensdist.utils.files import fsync, sync
from lensdist.utils.owners import remove, sweep, temporary
from lensdist.utils.sealed import fits, read_json, seal, unsealed
from lensdist.utils.stored import OpenFile, open_file
from lensdist.utils.tensors import write_safetensors

FORMAT = 1
SHARED = 2
"""The format of a checkpoint to which each process wrote a file."""
WEIGHTS = ("model/", "average/")
"""Tensors that hold neither NaN nor infinity."""
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
        tensors: by name, on the CPU or still in their files.
        meta: everything that is not a tensor.
        path: where it was read from.
    """

    step: int
    tensors: dict[str, Any]
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
    tensors: dict[str, shares.Entry] | None = None
    meta: dict[str, Any]


def write(root: Path, step: int, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> Path:
    """Save a step's state under `root` completely, or not at all.

    Raises:
        OSError: the disk is full, read-only or gone; older checkpoints are untouched.
    """
    beside = begin(root, step)
    try:
        size, digest = write_safetensors(beside / _TENSORS, tensors)
    except BaseException:
        remove(beside)
        raise
    return complete(beside, step, {_TENSORS: {"bytes": size, "sha256": digest}}, meta)


def begin(root: Path, step: int) -> Path:
    """Make the temporary folder of a checkpoint.

    Raises:
        OSError: the disk is full, read-only or gone.
    """
    root.mkdir(parents=True, exist_ok=True)
    sweep(root, locked=True)  # leftovers of killed processes may be filling the disk
    beside = temporary(root / checkpoint_name(step))
    beside.mkdir()
    return beside


def complete(
    beside: Path,
    step: int,
    files: dict[str, Any],
    meta: dict[str, Any],
    index: dict[str, Any] | None = None,
) -> Path:
    """Seal the files of a checkpoint, and give its folder the final name.

    Args:
        beside: from `begin`.
        step: optimizer steps done.
        files: size and SHA-256 of each file of tensors.
        meta: everything that is not a tensor.
        index: of the tensors, if several processes wrote them.

    Raises:
        OSError: the disk is full, read-only or gone; older checkpoints are untouched.
    """
    root, final = beside.parent, beside.with_name(checkpoint_name(step))
    try:
        manifest = {"format": FORMAT, "step": step, "files": files, "meta": meta}
        if index is not None:
            manifest |= {"format": SHARED, "tensors": index}
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


def read(
    path: Path,
    check: Callable[[Checkpoint], None] | None = None,
    *,
    lazy: bool = False,
    world: DistributedContext | None = None,
) -> Checkpoint:
    """Read and verify one checkpoint.

    Args:
        path: its folder.
        check: raises `Damaged` for a state that cannot be used. It is called before the tensors are
            read, with tensors on the meta device.
        lazy: verify the tensors, but leave them in their files (`lensdist/utils/stored.py`).
        world: processes that all call this; each verifies a part of the files. None: this process
            verifies all of them.

    Raises:
        Damaged: a file is missing, torn or altered, or its content is not a checkpoint's; on every
            process, whichever of them has found it.
    """
    found, problem = None, None
    try:
        found = _read(path, check or (lambda found: None), lazy, world)
    except Damaged as e:
        problem = str(e)
    problem = world.first(problem) if world is not None else problem
    if found is None or problem is not None:
        raise Damaged(problem)
    return found


def _read(
    path: Path,
    check: Callable[[Checkpoint], None],
    lazy: bool,
    world: DistributedContext | None,
) -> Checkpoint:
    at = path / _MANIFEST
    try:
        manifest = unsealed(read_json(at, _LIMIT), required=True)
        if manifest.get("format") not in (FORMAT, SHARED):
            raise ValueError(f"format {str(manifest.get('format'))[:20]} is not {FORMAT}")
        fits(_Manifest, manifest)
        step, meta, wanted = manifest["step"], manifest["meta"], manifest["files"]
        index = manifest["tensors"] if manifest["format"] == SHARED else None
        names = [_TENSORS] if index is None else shares.file_names(len(wanted))
        if wanted.keys() != set(names):
            raise ValueError(f"its files are not {names[0]} to {names[-1]}")
        named = _FOLDER.fullmatch(path.name)
        if named and int(named[1]) != step:
            raise ValueError(f"is of step {step}, not of the step in its folder's name")
        files: list[OpenFile] = []
        for name in names:
            at = path / name
            files.append(open_file(at))
            if files[-1].size != wanted[name]["bytes"]:
                raise ValueError(f"{files[-1].size} bytes instead of {wanted[name]['bytes']}")
        at = path / _MANIFEST
        stored = shares.assemble(files, index if index is not None else shares.index_of(files[0]))
        shapes = {
            name: torch.empty(value.shape, dtype=value.dtype, device="meta")
            for name, value in stored.items()
        }
        check(Checkpoint(step, shapes, meta, path))
        tensors: dict[str, Any] = (
            {**stored}
            if lazy
            else {
                name: torch.empty(value.shape, dtype=value.dtype) for name, value in stored.items()
            }
        )
        for number, (name, file) in enumerate(zip(names, files, strict=True)):
            at = path / name
            if world is None or number % world.size == world.rank:
                begins = {key: value.begin_in(file) for key, value in stored.items()}
                _verify(file, wanted[name]["sha256"], begins, {} if lazy else tensors)
    except OSError as e:
        raise Damaged(f"{at}: {e.strerror}") from e
    except (ValueError, LookupError) as e:
        raise Damaged(f"{at}: {e}") from e
    return Checkpoint(step, tensors, meta, path)


def _verify(
    file: OpenFile, sha256: str, begins: dict[str, int | None], into: dict[str, Tensor]
) -> None:
    """Check a file's hash, and that its weights are finite; copy what was checked.

    Args:
        file: to read once.
        sha256: what it must be.
        begins: where the tensors of this file begin in the whole ones.
        into: whole tensors to fill; empty to copy nothing.

    Raises:
        ValueError: it is another file, or holds NaN or infinity.
    """
    bad: str | None = None
    for name, begin, piece in file.pieces(sha256):
        if bad is None and name.startswith(WEIGHTS) and not piece.isfinite().all():
            bad = name
        if into:
            first = (begins[name] or 0) + begin
            into[name].view(-1)[first : first + piece.numel()] = piece
    if bad:
        raise ValueError(f"{bad[:80]} holds NaN or infinity")


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
    root: Path,
    check: Callable[[Checkpoint], None] | None = None,
    world: DistributedContext | None = None,
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest good checkpoint (`check` as in `read`), and errors of damaged newer ones.

    Args:
        root: a run's `checkpoints/`.
        check: as in `read`.
        world: processes that all call this and share the work; they leave tensors in their files.

    Raises:
        UserError: the processes see different checkpoints.
        RunError: there are checkpoints, but none is good. Only the user may decide to start
            again from step 0.
    """
    damaged: list[str] = []
    found = steps(root)
    if world is not None:
        world.agree("checkpoints", len(found))
    for _, path in reversed(found):
        try:
            return read(path, check, lazy=world is not None, world=world), damaged
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
