"""Run a function on chunks of a list, in this process or in several (torch-free)."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from typing import TypeVar

from lensdist.utils.errors import RunError

S = TypeVar("S")
T = TypeVar("T")


class OrderedPool(AbstractContextManager["OrderedPool"]):
    """Processes whose results come back in the order of the input.

    Args:
        jobs: number of processes; 1 works in this process.
    """

    def __init__(self, jobs: int) -> None:
        self._ahead = 2 * jobs
        self._pool: ProcessPoolExecutor | None = None
        if jobs > 1:
            spawn = multiprocessing.get_context("spawn")  # forking a process with threads may hang
            self._pool = ProcessPoolExecutor(jobs, spawn, _exit_with_parent)

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def map(
        self, task: Callable[[list[S]], list[T]], items: Sequence[S], chunk: int
    ) -> Iterator[T]:
        """Yield the results of `task` on chunks of `items`; work a few chunks ahead.

        Raises:
            RunError: a process was killed.
        """
        chunks = (list(items[i : i + chunk]) for i in range(0, len(items), chunk))
        if self._pool is None:
            for part in chunks:
                yield from task(part)
            return
        pending: deque[Future[list[T]]] = deque()
        try:
            for part in chunks:
                pending.append(self._pool.submit(task, part))
                if len(pending) > self._ahead:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        except BrokenProcessPool as error:
            raise RunError(
                "a process that read files was killed; try again with --jobs 1"
            ) from error


def _exit_with_parent() -> None:
    """Exit when the parent is killed; workers hold both ends of their queue and would stay."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
