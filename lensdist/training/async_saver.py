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
    """The writer of a run's checkpoints, one at a time.

    A full or read-only disk does not stop training: older checkpoints stay, the failure is
    reported, and the next save tries again.

    Args:
        root: the run's `checkpoints/`.
        keep: number of newest checkpoints to keep.
        background: whether to write in a thread.
        report: called on the training thread with the step and a sentence when a save fails.
    """

    def __init__(
        self, root: Path, keep: int, background: bool, report: Callable[[int, str], None]
    ) -> None:
        self.stalled_s = 0.0
        """Seconds for which the last save stopped the training thread."""
        self.slowest_s = 0.0
        """Longest time so far from the start of a copy until it was on the disk, in seconds."""
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
        try:
            checkpoint.write(self._root, step, tensors, meta)
            checkpoint.prune(self._root, step, self._keep, protect)
        except OSError as e:
            self._failure = e
        except BaseException as e:  # raised again on the training thread by `wait`
            self._defect = e
        finally:
            self.slowest_s = max(self.slowest_s, time.perf_counter() - self._began)
