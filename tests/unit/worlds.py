"""Processes in one: what `DistributedContext` promises, played by threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class FakeAccelerator:
    """What the engine asks of accelerate on a CPU in float32."""

    scaler = None

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def no_sync(self, model: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def clip_grad_norm_(self, parameters: Any, most: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(parameters, most)


class FakeWorld:
    """One of `size` processes; gathers wait for the others and keep rank order."""

    def __init__(self, rank: int = 0, size: int = 1, shared: dict[str, Any] | None = None) -> None:
        self.rank, self.size = rank, size
        self.device = torch.device("cpu")
        self.accelerator = FakeAccelerator()
        self._shared = shared or {}

    @property
    def main(self) -> bool:
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        if self.size == 1:
            return rows
        parts, barrier = self._shared["parts"], self._shared["barrier"]
        parts[self.rank] = rows.clone()
        barrier.wait()
        shapes = {tuple(p.shape) for p in parts}
        result = torch.cat(parts)
        barrier.wait()
        assert len(shapes) == 1, f"processes gather different shapes: {shapes}"
        return result

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def wrap(self, model: Any, *, ddp: bool) -> Any:
        return model

    def unwrap(self, bare: Any) -> None:
        pass

    def from_main(self, value: Any) -> Any:
        return value

    def any(self, flag: bool) -> bool:
        return bool(self.gather(torch.tensor([flag])).any())

    def barrier(self) -> None:
        self.gather(torch.zeros(1))


_generator = threading.Lock()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global generator for one thread at a time: real processes have one each."""
    with _generator:
        torch.manual_seed(seed)
        yield


def on_all(size: int, work: Callable[[Any], Any]) -> list[Any]:
    """Run `work(world)` on `size` processes; their results in rank order."""
    shared = {"parts": [None] * size, "barrier": threading.Barrier(size, timeout=120)}
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(FakeWorld(rank, size, shared))
        except BaseException as e:
            results[rank] = e
            shared["barrier"].abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
