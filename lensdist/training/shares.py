"""The files of a checkpoint that several processes write, each its own share.

    state-00000-of-00004.safetensors   runs of elements of the tensors, by the tensors' names

The manifest lists, for each tensor, its shape and where its parts begin. Processes
tell the main one what they have written through the store by which they met: a thread must not call
collectives, which training uses meanwhile.
"""

from __future__ import annotations

import errno
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import _get_default_store

from lensdist.distributed.context import DistributedContext
from lensdist.distributed.shares import Share
from lensdist.utils.stored import OpenFile, Stored
from lensdist.utils.tensors import write_safetensors

PATIENCE = 1800.0
"""Seconds that the main process waits for the others' shares."""


class Entry(BaseModel):
    """A tensor in the manifest."""

    model_config = ConfigDict(extra="forbid")

    shape: list[Annotated[int, Field(ge=0)]]
    parts: list[Annotated[list[int], Field(min_length=2, max_length=2)]]
    """The number of a file, and the index of the first element in it, in row-major order."""


def file_names(count: int) -> list[str]:
    """Return the names of the files of `count` processes."""
    return [f"state-{number:05d}-of-{count:05d}.safetensors" for number in range(count)]


def index_of(file: OpenFile) -> dict[str, Any]:
    """Return the index of a file that holds whole tensors."""
    return {
        name: {"shape": list(like.shape), "parts": [[0, 0]]}
        for name, (like, _) in file.tensors.items()
    }


def assemble(files: Sequence[OpenFile], index: Mapping[str, Any]) -> dict[str, Stored]:
    """Return the tensors of a manifest's index.

    Raises:
        ValueError: the files are not those of the index.
    """
    found: dict[str, Stored] = {}
    used: set[tuple[int, str]] = set()
    for name, entry in index.items():
        if any(not 0 <= number < len(files) for number, _ in entry["parts"]):
            raise ValueError(f"{name[:80]} is in a file that is not there")
        if any(name not in files[number].tensors for number, _ in entry["parts"]):
            raise ValueError(f"{name[:80]} is not in the files that should hold it")
        try:
            found[name] = Stored(
                entry["shape"], [(begin, files[number], name) for number, begin in entry["parts"]]
            )
        except ValueError as e:
            raise ValueError(f"{name[:80]}: {e}") from e
        used |= {(number, name) for number, _ in entry["parts"]}
    parts = sum(len(entry["parts"]) for entry in index.values())
    if not len(used) == parts == sum(len(file.tensors) for file in files):
        raise ValueError("its index does not name each part of its files once")
    return found


class Together:
    """The processes that write a checkpoint together.

    Args:
        world: the processes.
    """

    def __init__(self, world: DistributedContext) -> None:
        self.world = world
        self.patience = PATIENCE
        """Seconds to wait for the others; shorter once this process has failed."""
        store = _get_default_store()
        self._store = PrefixStore("lensdist checkpoints", store)

    def write(
        self,
        folder: Path,
        shares: Mapping[str, Share],
        complete: Callable[[dict[str, Any], dict[str, Any]], object],
    ) -> None:
        """Write this process's file; the main process then completes the checkpoint.

        Args:
            folder: where.
            shares: by name; their values are copies, which training does not change.
            complete: called on the main process with all files and the index.

        Raises:
            OSError: a process could not write its file.
        """
        rank, names = self.world.rank, file_names(self.world.size)
        failure: BaseException | None = None
        told: dict[str, Any]
        try:
            values = {name: share.values for name, share in shares.items()}
            size, digest = write_safetensors(folder / names[rank], values)
            places = {name: [list(share.shape), share.begin] for name, share in shares.items()}
            told = {"file": {"bytes": size, "sha256": digest}, "places": places}
        except BaseException as e:
            failure = e
            told = {"error": f"process {rank}: {getattr(e, 'strerror', None) or e}"}
        if not self.world.main:
            self._store.set(f"{folder.name}/{rank}", json.dumps(told))
        else:
            all_told = [told, *self._collect(folder.name)]
            errors = [each["error"] for each in all_told if "error" in each]
            if errors and failure is None:
                failure = OSError(errno.EIO, errors[0])
            if failure is None:
                files = {name: each["file"] for name, each in zip(names, all_told, strict=True)}
                complete(files, _index([each["places"] for each in all_told]))
        if failure is not None:
            raise failure

    def _collect(self, save: str) -> list[dict[str, Any]]:
        """Return what the other processes have told."""
        began = time.monotonic()
        found: list[dict[str, Any]] = []
        pause = threading.Event()
        for rank in range(1, self.world.size):
            key = f"{save}/{rank}"
            while not self._store.check([key]):  # `wait` would block other users of the store
                if time.monotonic() - began > self.patience:
                    return [*found, {"error": f"process {rank} has not written its share"}]
                pause.wait(0.02)
            found.append(json.loads(self._store.get(key)))
            self._store.delete_key(key)
        return found


def _index(places: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    index: dict[str, Any] = {}
    for number, mine in enumerate(places):
        for name, (shape, begin) in mine.items():
            index.setdefault(name, {"shape": shape, "parts": []})["parts"].append([number, begin])
    return index
