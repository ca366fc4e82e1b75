"""Save checkpoints during training: copy the state, and write the copy in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensdist.distributed.shares import Share
from lensdist.training import checkpoint
from lensdist.training.shares import Together
from lensdist.utils.owners import remove


class Saver:
    """The writer of a run's checkpoints, one at a time.

    A full or read-only disk does not stop training: older checkpoints stay, the failure is
    reported, and the next save tries again.

    Args:
        root: the run's `checkpoints/`.
        keep: number of newest checkpoints to keep.
        background: whether to write in a thread.
        report: called on the training thread with the step and a sentence when a save fails.
        together: the processes that call `save_shares`, if any.
    """

    def __init__(
        self,
        root: Path,
        keep: int,
        background: bool,
        report: Callable[[int, str], None],
        together: Together | None = None,
    ) -> None:
        self.stalled_s = 0.0
        """Seconds for which the last save stopped the training thread."""
        self.slowest_s = 0.0
        """Longest time so far from the start of a copy until it was on the disk, in seconds."""
        self._root = root
        self._keep = keep
        self._background = background
        self._report = report
        self._together = together
        self._thread: threading.Thread | None = None
        self._failure: OSError | None = None
        self._defect: BaseException | None = None
        self._reported = True
        self._step = 0
        self._began = 0.0
        self._staged: dict[str, Tensor] = {}

    def needs_s(self) -> float:
        """Return the seconds that a save started now may take, judged by the earlier ones.

        A save in progress must end first.
        """
        under_way = self._thread is not None and self._thread.is_alive()
        return self.slowest_s * (2 if under_way else 1)

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Allocate buffers for states like this one in a thread, so the first save is fast too.

        Allocation takes longer than the copy. The values copied now are never written.
        """
        self.poll()
        if self._background and self._thread is None:
            self._thread = threading.Thread(
                target=self._stage, args=(tensors,), name="checkpoint buffers"
            )
            self._thread.start()

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        meta: dict[str, Any],
        protect: set[int],
        began: float | None = None,
    ) -> None:
        """Save a step after the last save has ended, in a thread if `background` is set.

        Args:
            step: optimizer steps done.
            tensors: the state, by name.
            meta: everything that is not a tensor, as JSON.
            protect: steps whose checkpoints are kept.
            began: time at which gathering the state began, by `time.perf_counter`.
        """
        start = self._start(step, began)
        staged = self._stage(tensors)
        self._run(lambda: self._write(step, staged, meta, protect), start)

    def save_shares(
        self,
        step: int,
        shares: Mapping[str, Share],
        meta: dict[str, Any],
        protect: set[int],
        began: float | None = None,
    ) -> None:
        """Save a step as `save` does, each process its own share; all processes call it.

        Args:
            step: optimizer steps done.
            shares: this process's part of the state, by name.
            meta, protect, began: as in `save`; the main process's count.
        """
        assert self._together is not None
        together, world = self._together, self._together.world
        start = self._start(step, began)
        folder: Path | None = None
        if world.main:
            try:
                folder = checkpoint.begin(self._root, step)
            except OSError as e:
                self._failure = e
        folder = world.from_main(folder)
        if folder is None:
            self._run(lambda: None, start)
            return
        beside = folder
        staged = self._stage({name: share.values for name, share in shares.items()})
        places = {name: share._replace(values=staged[name]) for name, share in shares.items()}

        def complete(files: dict[str, Any], index: dict[str, Any]) -> None:
            checkpoint.complete(beside, step, files, meta, index)
            checkpoint.prune(self._root, step, self._keep, protect)

        def write() -> None:
            try:
                together.write(beside, places, complete)
            finally:
                if world.main:
                    remove(beside)  # nothing, once it has its final name

        self._run(lambda: self._tried(write), start)

    def hurry(self) -> None:
        """Wait no longer than seconds for the other processes' shares."""
        if self._together is not None:
            self._together.patience = 20.0

    def _start(self, step: int, began: float | None) -> float:
        """Wait for the last save, and return when this one began."""
        now = time.perf_counter()
        gathering = 0.0 if began is None else now - began
        self.wait()
        self._step, self._failure, self._reported = step, None, False
        self._began = time.perf_counter() - gathering
        return now - gathering

    def _run(self, write: Callable[[], None], start: float) -> None:
        if self._background:
            # Not a daemon: the end of the run must not interrupt its last checkpoint.
            self._thread = threading.Thread(target=write, name="checkpoint writer")
            self._thread.start()
        else:
            write()
            self.wait()
        self.stalled_s = time.perf_counter() - start

    def poll(self) -> None:
        """Report the save in progress if it has already failed; never wait."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> bool:
        """Wait for the save in progress, if any, and return whether the last save succeeded.

        Raises:
            Exception: the error is not the disk's, such as a value that JSON cannot hold. A state
                that can never be saved must not count as saved.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._defect is not None:
            raise self._defect
        if self._failure is not None and not self._reported:
            self._reported = True
            self._report(
                self._step,
                f"{self._root}: {self._failure.strerror or self._failure}; training continues, "
                "older checkpoints are kept, and the next save tries again",
            )
        return self._failure is None

    def _stage(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy into buffers that are kept between saves: allocation costs more than the copy."""
        for name in self._staged.keys() - tensors.keys():
            del self._staged[name]
        on_gpu = False
        for name, tensor in tensors.items():
            buffer = self._staged.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                pinned = tensor.device.type == "cuda"
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
                self._staged[name] = buffer
            buffer.copy_(tensor.detach(), non_blocking=True)
            on_gpu |= tensor.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize()
        return dict(self._staged)

    def _write(
        self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any], protect: set[int]
    ) -> None:
        def write() -> None:
            checkpoint.write(self._root, step, tensors, meta)
            checkpoint.prune(self._root, step, self._keep, protect)

        self._tried(write)

    def _tried(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as e:
            self._failure = e
        except BaseException as e:  # raised again on the training thread by `wait`
            self._defect = e
        finally:
            self.slowest_s = max(self.slowest_s, time.perf_counter() - self._began)
