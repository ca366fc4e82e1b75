"""Save checkpoints during training: copy the state, and write the copy in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensdist.training import checkpoint


class Saver:
    """Writes a run's checkpoints, one at a time.

    A disk that is full or read-only does not stop training: the older checkpoints stay, the
    failure is reported, and the next save tries again.

    Args:
        root: the run's `checkpoints/`.
        keep: how many of the newest to keep.
        background: whether to write in a thread.
        report: told of a failure: the step and a sentence; called on the training thread.
    """

    def __init__(
        self, root: Path, keep: int, background: bool, report: Callable[[int, str], None]
    ) -> None:
        self.stalled_s = 0.0
        """Seconds for which the last save stopped the training thread."""
        self.slowest_s = 0.0
        """Longest time so far from the start of a copy to its end on the disk, in seconds."""
        self._root = root
        self._keep = keep
        self._background = background
        self._report = report
        self._thread: threading.Thread | None = None
        self._failure: OSError | None = None
        self._defect: BaseException | None = None
        self._reported = True
        self._step = 0
        self._began = 0.0
        self._staged: dict[str, Tensor] = {}

    def needs_s(self) -> float:
        """Return how many seconds a save may take that starts now, from the earlier ones.

        A save that is under way must end first.
        """
        under_way = self._thread is not None and self._thread.is_alive()
        return self.slowest_s * (2 if under_way else 1)

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Allocate buffers for states like this one in a thread, for the first save to be as fast.

        Allocation takes longer than the copy. What is copied now is never written.
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
        """Save a step once the last save is done; in a thread, where `background` is set.

        Args:
            step: optimizer steps done.
            tensors: the state, by name.
            meta: everything that is not a tensor, as JSON.
            protect: steps whose checkpoints are kept.
            began: when gathering the state began, by `time.perf_counter`.
        """
        start = time.perf_counter()
        gathering = 0.0 if began is None else start - began
        self.wait()
        self._step, self._failure, self._reported = step, None, False
        self._began = time.perf_counter() - gathering
        staged = self._stage(tensors)
        if self._background:
            # Not a daemon: the end of the run must not interrupt its last checkpoint.
            self._thread = threading.Thread(
                target=self._write, args=(step, staged, meta, protect), name="checkpoint writer"
            )
            self._thread.start()
        else:
            self._write(step, staged, meta, protect)
            self.wait()
        self.stalled_s = time.perf_counter() - start + gathering

    def poll(self) -> None:
        """Report a failure of the save under way, if it has failed by now; never waits."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> bool:
        """Wait for the save under way, if any, and return whether the last save succeeded.

        Raises:
            Exception: an error that is not of the disk, such as a value that JSON cannot hold. A
                state that can never be saved must not count as saved.
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
                f"{self._root}: {self._failure.strerror or self._failure}; training goes on, "
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
        try:
            checkpoint.write(self._root, step, tensors, meta)
            checkpoint.prune(self._root, step, self._keep, protect)
        except OSError as e:
            self._failure = e
        except BaseException as e:  # raised on the training thread, which would not hear of it
            self._defect = e
        finally:
            self.slowest_s = max(self.slowest_s, time.perf_counter() - self._began)
