"""Time two processes that share a run, relative to two that work alone.

    OMP_NUM_THREADS=1 python -m benchmarks.two_processes --out two_processes.json
    python -m benchmarks.two_processes speed.bucket_mb=25   # with a changed setting

The MAE of `reference` trains in micro-batches of 32, by lensdist's own loop, one thread and one
core per process. As a pair under DDP (gloo) they compute one step of 64 images together; alone,
each computes steps of 32. So all compute the same in a step, and the pair's loss in images per
second is the cost of communication, and of waiting for the slower one. Both single processes run at
the same time, because two cores share caches and memory. Pair and single processes take turns.

A gate comes first: the pair's losses of every micro-batch must be those of one process that
computes both.
"""

from __future__ import annotations

import multiprocessing
import os
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Literal

import torch
from torch.distributed.elastic.utils.distributed import get_free_port

from benchmarks.harness.processes import answers
from benchmarks.harness.report import options, reporting
from benchmarks.harness.turns import Tolerance, over, spread, take_turns
from lensdist.config import load
from lensdist.config.schema import schema_of
from lensdist.data.packing.simulated import write_packed
from lensdist.sim.config import SimConfig

CONFIG = Path(__file__).parents[1] / "configs/mae/reference.yaml"
CPU = torch.device("cpu")
MICRO, GATE_STEPS, SKIP = 32, 2, 2
TOLERANCE = Tolerance(1e-5, 1e-4)
Kind = Literal["pair", "alone", "both"]
Result = tuple[float, float, list[float]]
"""Seconds of the window, those on a core, and the losses of this process's micro-batches."""


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument(
        "--steps", type=int, default=3, help="steps per turn (default: %(default)s)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of all")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("two processes need a core each: this machine lends only one")
    with reporting(args, "Two processes", CPU, steps=args.steps) as (report, scratch):
        write_packed(scratch / "packed", SimConfig(family="model_ii"), 240, 0)
        report.gated({"pair": gate(scratch, cores, args.overrides)})
        kinds: tuple[Kind, ...] = ("pair", "alone")
        what = (scratch, cores, args.steps, args.overrides)
        turns = {str(kind): partial(turn, kind, *what) for kind in kinds}
        found = take_turns(turns, args.rounds)
        # Each process computes one micro-batch per step, in the pair too.
        images = args.steps * MICRO
        rates = {k: [sum(images / s for s, _, _ in one) for one in v] for k, v in found.items()}
        on_core = {k: [sum(images / s for _, s, _ in one) for one in v] for k, v in found.items()}
        report.table(
            [
                {"two processes": kind, **spread("images_per_s", rates[kind])}
                | over("over_alone", rates[kind], rates["alone"])
                | over("over_alone, on a core", on_core[kind], on_core["alone"])
                for kind in found
            ]
        )
        report.say("`on a core`: by the time on a core, without waiting.")


def gate(scratch: Path, cores: list[int], overrides: list[str]) -> float:
    """Return the largest difference of the pair's losses from those of one process.

    Raises:
        RunError: it is larger than rounding: they do not compute the same step.
    """
    still = [*overrides, "model.dropout=0"]
    pair = turn("pair", scratch, cores, GATE_STEPS, still)
    one = turn("both", scratch, cores[:1], GATE_STEPS, still)
    whole = torch.tensor(one[0][-1]).view(-1, 2)
    return max(
        TOLERANCE.refuse(f"process {rank}", torch.tensor(losses), whole[:, rank])
        for rank, (_, _, losses) in enumerate(pair)
    )


def turn(
    kind: Kind, scratch: Path, cores: list[int], steps: int, overrides: list[str]
) -> list[Result]:
    """Run a process on each core at the same time, from their start to their end.

    Args:
        kind: pair, under DDP; alone, each by itself; both, one process with the pair's step.
        scratch: holds the images.
        cores: one for each process.
        steps: timed steps.
        overrides: settings of the run.
    """
    together = multiprocessing.get_context("spawn").Barrier(len(cores))
    port = get_free_port()  # type: ignore[no-untyped-call]
    works = [
        (kind, rank, core, port, scratch, steps, overrides, together)
        for rank, core in enumerate(cores)
    ]
    return answers(worker, works, kind)


def worker(
    kind: Kind, rank: int, core: int, port: int, scratch: Path, steps: int, overrides: list[str],
    together: Barrier, pipe: Connection,
) -> None:  # fmt: skip
    """Train in a process of its own, and send the result."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    os.environ |= {"ACCELERATE_USE_CPU": "true"}
    if kind == "pair":
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"LOCAL_WORLD_SIZE": "2"}

    from benchmarks.harness.ours import Ours
    from lensdist.data.dataset import PackedSet

    batch = MICRO if kind == "alone" else 2 * MICRO
    place = "pair" if kind == "pair" else f"{kind}-{rank}"
    words = [f"run.dir={scratch / place}", f"data.path={scratch / 'packed'}"]
    words += [f"train.global_batch={batch}", f"train.micro_batch={MICRO}", *overrides]
    ours = Ours(load(CONFIG, words, schema=schema_of), PackedSet(scratch / "packed"))
    watch = ours.watch(SKIP, steps)
    together.wait()
    ours.turn(watch)
    losses = [float(loss) for loss in watch.losses]
    pipe.send((watch.seconds, sum(watch.cpu_each), losses))
    pipe.close()
    ours.world.close(0, together=kind == "pair")


if __name__ == "__main__":
    main()
