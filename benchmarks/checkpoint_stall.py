"""Time how long training waits for a checkpoint: ours, `torch.save`, and safetensors' own.

    OMP_NUM_THREADS=1 python -m benchmarks.checkpoint_stall --out checkpoint_stall.json

The state is a 40-million-parameter model's: weights and Adam's two moments, 488 MB of float32.
`Saver` copies it into memory allocated after a run's first step, and a thread writes, hashes and
fsyncs it. The rivals write in the foreground; they do not hash, but here they fsync too, because a
crash may lose a file that was not. The first save is listed separately: it may touch new memory.

While the thread writes, training continues more slowly: the same loop of matrix products is timed
with and without a writer in the background.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.harness.report import options, reporting
from benchmarks.harness.turns import over, spread, take_turns
from lensdist.training.async_saver import Saver

State = dict[str, Tensor]
CPU = torch.device("cpu")


def main() -> None:
    parser = options(__doc__, rounds=7)
    parser.add_argument("--megabytes", type=int, default=488, help="of state (default: 488)")
    parser.add_argument("--dir", type=Path, help="where to write (default: a temporary folder)")
    args = parser.parse_args()
    state = state_of(args.megabytes)
    megabytes = sum(t.nbytes for t in state.values()) / 1e6
    title = f"Stall of a checkpoint of {megabytes:.0f} MB"
    with reporting(args, title, CPU, megabytes=megabytes) as (report, scratch):
        place = args.dir or scratch
        report.table(measure(state, place, args.rounds))
        slowed = report.facts["slowed"] = slow_down(state, place)
        report.say(
            f"Written, in the background, in {slowed['written_s']:.2f} s; a loop of matrix "
            f"products runs {slowed['ratio']:.2f} times slower during the write: a save costs it "
            f"{slowed['cost_s']:.3f} s."
        )


def state_of(megabytes: int) -> State:
    """Return weights and two moments of equal layers, as a transformer has them."""
    layer = 1_000_000  # floats
    layers = max(1, round(megabytes * 1e6 / (3 * 4 * layer)))
    state: State = {}
    for i in range(layers):
        for part in ("model", "optim/exp_avg", "optim/exp_avg_sq"):
            state[f"{part}/{i}"] = torch.rand(1000, 1000)
        state[f"optim/step/{i}"] = torch.tensor(1.0)
    return state


def measure(state: State, scratch: Path, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each way of saving: the seconds that training waits."""
    saver = Saver(scratch / "ours", 1, True, complain)
    bare = Saver(scratch / "unprepared", 1, True, complain)
    saver.prepare(state)
    saver.wait()
    steps = itertools.count()
    ways: dict[str, Callable[[], float]] = {
        "lensdist, in the background": lambda: ours(saver, state, next(steps)),
        "the same, nothing prepared": lambda: ours(bare, state, next(steps)),
        "torch.save, in the foreground": lambda: foreground(torch.save, state, scratch / "a.pt"),
        "safetensors, in the foreground": lambda: foreground(
            save_file, state, scratch / "b.safetensors"
        ),
    }
    each = take_turns(ways, rounds + 1)
    base = next(iter(each.values()))[1:]
    return [
        {"way": name, "first_s": first, **spread("s", later), **over("over_ours", later, base)}
        for name, (first, *later) in each.items()
    ]


def ours(saver: Saver, state: State, step: int) -> float:
    """Return the seconds that the training thread waits; leave the disk idle for the next way."""
    saver.save(step, state, {"step": step}, set())
    stalled = saver.stalled_s
    saver.wait()
    return stalled


def foreground(write: Callable[[State, Path], object], state: State, path: Path) -> float:
    """Write to a temporary name, fsync and rename; return the seconds."""
    start = time.perf_counter()
    temporary = path.with_suffix(".tmp")
    write(state, temporary)
    handle = os.open(temporary, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    temporary.replace(path)
    return time.perf_counter() - start


def slow_down(state: State, scratch: Path) -> dict[str, float]:
    """Time the same work with and without a writer in the background, in turns."""
    a, b = torch.rand(64, 512), torch.rand(512, 512)

    def steps(while_true: Callable[[float], bool]) -> tuple[int, float]:
        start, done = time.perf_counter(), 0
        while while_true(time.perf_counter() - start):
            for _ in range(20):
                a @ b
            done += 1
        return done, time.perf_counter() - start

    saver = Saver(scratch / "slow", 1, True, complain)
    saver.save(0, state, {}, set())
    saver.wait()
    rows: list[dict[str, float]] = []
    for i in range(1, 6):
        free, seconds = steps(lambda elapsed: elapsed < 1)
        rate = free / seconds
        saver.save(i, state, {}, set())
        thread = saver._thread
        assert thread is not None
        busy, written = steps(lambda elapsed, t=thread: t.is_alive())  # type: ignore[misc]
        saver.wait()
        ratio, cost = rate / (busy / written), written - busy / rate
        rows.append({"ratio": ratio, "cost_s": cost, "written_s": written})
    return {key: spread(key, [row[key] for row in rows])[key] for key in rows[0]}


def complain(step: int, sentence: str) -> None:
    """End the benchmark: a save that fails is not a measurement."""
    raise SystemExit(f"step {step}: {sentence}")


if __name__ == "__main__":
    main()
