"""How long saving a checkpoint keeps training waiting: ours, `torch.save`, and safetensors' own.

    OMP_NUM_THREADS=1 python -m benchmarks.checkpoint_stall --out checkpoint_stall.json

The state is a 40-million-parameter model's: weights and Adam's two moments, 488 MB of float32.
`Saver` copies it aside, into memory made ready after a run's first step, and lets a thread write,
hash and fsync. The rivals write in the foreground; they do not hash, but here they fsync too, for a
file that a crash may lose is no checkpoint. All take turns, so that a busy machine slows all of
them. The first save is listed by itself: it may touch fresh memory.

While the thread writes, training goes on, slower: the same loop of matrix products is timed with
and without a writer behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lensdist.engine.saver import Saver

State = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=488, help="of state (default: 488)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: 7)")
    parser.add_argument("--dir", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)

    state = state_of(args.megabytes)
    with tempfile.TemporaryDirectory(prefix="lensdist-stall-", dir=args.dir) as scratch:
        rows = measure(state, Path(scratch), args.rounds)
        slowed = slow_down(state, Path(scratch))

    megabytes = sum(t.nbytes for t in state.values()) / 1e6
    print(f"{megabytes:.0f} MB in {len(state)} tensors; seconds that training waits\n")
    print(f"{'way':<34}{'first':>9}{'later':>9}{'quartiles':>18}{'x ours':>9}")
    for row in rows:
        low, high = row["quartiles_s"]
        print(
            f"{row['way']:<34}{row['first_s']:>9.3f}{row['later_s']:>9.3f}"
            f"{f'{low:.3f} .. {high:.3f}':>18}{row['over_ours']:>9.1f}"
        )
    print(
        f"\nwritten, in the background, in {slowed['written_s']:.2f} s; a loop of matrix products "
        f"runs {slowed['ratio']:.2f} times slower meanwhile: a save costs it another "
        f"{slowed['cost_s']:.3f} s"
    )
    if args.out:
        facts = {"megabytes": megabytes, "rounds": args.rounds, "torch": torch.__version__}
        args.out.write_text(json.dumps(facts | {"rows": rows, "slowed": slowed}, indent=2) + "\n")


def state_of(megabytes: int) -> State:
    """Weights and two moments of equal layers, the way a transformer's are."""
    layer = 1_000_000  # floats
    layers = max(1, round(megabytes * 1e6 / (3 * 4 * layer)))
    state: State = {}
    for i in range(layers):
        for part in ("model", "optim/exp_avg", "optim/exp_avg_sq"):
            state[f"{part}/{i}"] = torch.rand(1000, 1000)
        state[f"optim/step/{i}"] = torch.tensor(1.0)
    return state


def measure(state: State, scratch: Path, rounds: int) -> list[dict[str, Any]]:
    """A row a way of saving."""
    saver = Saver(scratch / "ours", 1, True, complain)
    bare = Saver(scratch / "unprepared", 1, True, complain)
    saver.prepare(state)
    saver.wait()
    ways: dict[str, Callable[[int], float]] = {
        "lensdist, in the background": lambda i: ours(saver, state, i),
        "the same, nothing made ready": lambda i: ours(bare, state, i),
        "torch.save, in the foreground": lambda i: foreground(torch.save, state, scratch / "a.pt"),
        "safetensors, in the foreground": lambda i: foreground(
            save_file, state, scratch / "b.safetensors"
        ),
    }
    each: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, way in ways.items():
            each[name].append(way(i))
            saver.wait()  # the next way has the disk for itself
            bare.wait()
    base = next(iter(each.values()))[1:]
    rows = []
    for name, (first, *later) in each.items():
        low, _, high = statistics.quantiles(later, n=4, method="inclusive")
        ratios = [a / b for a, b in zip(later, base, strict=True)]
        rows.append(
            {
                "way": name,
                "first_s": first,
                "later_s": statistics.median(later),
                "quartiles_s": (low, high),
                "over_ours": statistics.median(ratios),
            }
        )
    return rows


def ours(saver: Saver, state: State, step: int) -> float:
    """What the training thread waits for."""
    saver.save(step, state, {"step": step}, set())
    return saver.stalled_s


def foreground(write: Callable[[State, Path], object], state: State, path: Path) -> float:
    """Write to a temporary name, fsync, rename."""
    start = time.perf_counter()
    temporary = path.with_suffix(".tmp")
    write(state, temporary)
    handle = os.open(temporary, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    temporary.replace(path)
    return time.perf_counter() - start


def slow_down(state: State, scratch: Path) -> dict[str, float]:
    """The same work with and without a writer behind it, in turns."""
    a, b = torch.rand(64, 512), torch.rand(512, 512)

    def steps(while_true: Callable[[int, float], bool]) -> tuple[int, float]:
        start, done = time.perf_counter(), 0
        while while_true(done, time.perf_counter() - start):
            for _ in range(20):
                a @ b
            done += 1
        return done, time.perf_counter() - start

    saver = Saver(scratch / "slow", 1, True, complain)
    saver.save(0, state, {}, set())
    saver.wait()
    ratios, costs, took = [], [], []
    for i in range(1, 6):
        free, seconds = steps(lambda done, elapsed: elapsed < 1)
        rate = free / seconds
        saver.save(i, state, {}, set())
        thread = saver._thread
        assert thread is not None
        busy, written = steps(lambda done, elapsed, t=thread: t.is_alive())  # type: ignore[misc]
        saver.wait()
        ratios.append(rate / (busy / written))
        costs.append(written - busy / rate)
        took.append(written)
    median = statistics.median
    return {"ratio": median(ratios), "cost_s": median(costs), "written_s": median(took)}


def complain(step: int, sentence: str) -> None:
    """A save that fails is no measurement."""
    raise SystemExit(f"step {step}: {sentence}")


if __name__ == "__main__":
    main()
