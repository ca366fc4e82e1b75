"""Checkpoints: one safetensors file and one JSON, complete or absent, never a pickle.

    checkpoints/step-00000400/state.safetensors   every tensor, by name
                              checkpoint.json     step, scalars, size and SHA-256 of the tensors,
                                                  and the SHA-256 of this JSON itself

Written to a temporary folder, fsynced, renamed; only then are older ones pruned. Reading takes the
bytes once, checks *those* bytes and parses *those* bytes, so what was checked is what is used.
(A memory map would be shorter, but a file truncated under its reader ends the process.)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as parse_safetensors
from torch import Tensor

from lensdist.errors import RunError
from lensdist.files import fsync, sync
from lensdist.owners import remove, sweep, temporary
from lensdist.tensors import write_safetensors

FORMAT = 1
_TENSORS = "state.safetensors"
_MANIFEST = "checkpoint.json"
_FOLDER = re.compile(r"step-(\d{8,})")


class Damaged(Exception):
    """A checkpoint that is not what was written, and why."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved.

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


def _seal(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def write(root: Path, step: int, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> Path:
    """Save a step's state under `root`, all of it or nothing.

    Raises:
        OSError: the disk is full, read-only or gone; older checkpoints are untouched.
    """
    root.mkdir(parents=True, exist_ok=True)
    final = root / f"step-{step:08d}"
    sweep(root, locked=True)  # what killed lives left may be what fills the disk
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
            json.dump({**manifest, "seal": _seal(manifest)}, f, indent=1, allow_nan=False)
            f.flush()
            sync(f.fileno())
        fsync(beside)
        if final.exists():  # a replay of the same step after a resume from before it
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


def read(path: Path) -> Checkpoint:
    """Read one checkpoint, verified.

    Raises:
        Damaged: a file is missing, torn or altered.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        seal = manifest.pop("seal")
        wanted = manifest["files"][_TENSORS]
        step, meta = int(manifest["step"]), dict(manifest["meta"])
    except OSError as e:
        raise Damaged(f"{path / _MANIFEST}: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise Damaged(f"{path / _MANIFEST}: not a checkpoint manifest") from e
    if seal != _seal(manifest):
        raise Damaged(f"{path / _MANIFEST}: altered since it was written")
    if manifest["format"] != FORMAT:
        raise Damaged(f"{path / _MANIFEST}: format {manifest['format']} is not {FORMAT}")
    try:
        data = (path / _TENSORS).read_bytes()
    except OSError as e:
        raise Damaged(f"{path / _TENSORS}: {e.strerror}") from e
    if len(data) != wanted["bytes"]:
        raise Damaged(f"{path / _TENSORS}: {len(data)} bytes instead of {wanted['bytes']}")
    if hashlib.sha256(data).hexdigest() != wanted["sha256"]:
        raise Damaged(f"{path / _TENSORS}: altered since it was written")
    return Checkpoint(step, parse_safetensors(data), meta, path)


def steps(root: Path) -> list[tuple[int, Path]]:
    """The checkpoints under `root`, oldest step first; by step, never by a clock."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in root.iterdir():
            match = _FOLDER.fullmatch(path.name)
            if match and path.is_dir():
                found.append((int(match[1]), path))
    return sorted(found)


def newest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest good checkpoint, and what was found damaged on the way to it.

    Raises:
        RunError: there are checkpoints, but none is good. Starting again from nothing must be
            somebody's decision.
    """
    damaged: list[str] = []
    found = steps(root)
    for _, path in reversed(found):
        try:
            return read(path), damaged
        except Damaged as e:
            damaged.append(str(e))
    if found:
        raise RunError(
            f"none of the {len(found)} checkpoints in {root} is whole ({damaged[0]}); "
            "move the folder away to start again from step 0"
        )
    return None, damaged


def prune(root: Path, saved: int, keep: int, protect: set[int]) -> None:
    """Delete all but the newest `keep` checkpoints up to step `saved` and the protected steps.

    Those after `saved`, the step just written, go too: the run was resumed from before them, since
    they were damaged or somebody wished so. Counted as newest, they would push out good ones.
    """
    found = steps(root)
    kept = {*[step for step, _ in found if step <= saved][-keep:], *protect}
    for step, path in found:
        if step not in kept:
            # Out of the way first: a reader must never find half of a checkpoint by this name.
            doomed = temporary(path)
            path.rename(doomed)
            remove(doomed)
