"""Processes that measure beside each other, each from its start to its end."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any


def answers(worker: Callable[..., None], works: Sequence[tuple[Any, ...]], what: str) -> list[Any]:
    """Start a process for each of `works`, and return what each sends through its pipe.

    Args:
        worker: called with the arguments, and at last with the end of the pipe to send through.
        works: its arguments; a barrier among them must be of the context "spawn".
        what: the name of the measurement, for the message.

    Raises:
        SystemExit: a process ended before it had sent anything.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for work in works:
        here, there = context.Pipe(duplex=False)
        pipes.append(here)
        processes.append(context.Process(target=worker, args=(*work, there), daemon=True))
        processes[-1].start()
        there.close()  # otherwise the other end would not notice that the process has ended
    try:
        return [pipe.recv() for pipe in pipes]
    except EOFError as e:
        raise SystemExit(f"{what}: a process ended before it was done; see above") from e
    finally:
        for process in processes:
            process.join()
