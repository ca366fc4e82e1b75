"""What two processes that share a run lose to two that know nothing of each other.

    OMP_NUM_THREADS=1 python benchmarks/two_processes.py --out two_processes.json
    python benchmarks/two_processes.py speed.bucket_mb=25   # with some setting changed

The MAE of `reference` in micro-batches of 32, by lensdist's own loop, one thread and one core a
process. As a pair under DDP (gloo) they compute one step of 64 images together; alone, each
computes steps of 32. So all compute the same in a step, and what is missing from the pair's images
a second is what communication, and waiting for the slower one, cost. Both alone run at the same
time, for two cores share caches and memory. Pair and alone take turns.

First a gate: the pair's losses of every micro-batch must be those of one process that computes
both.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Literal

import torch

from lensdist.bench.speed.turns import Tolerance, spread
from lensdist.config import load
from lensdist.config.schema import schema_of
from lensdist.data.packing.simulated import write_packed
from lensdist.sim.config import SimConfig

CONFIG = Path(__file__).parents[1] / "configs/mae/reference.yaml"
MICRO, GATE_STEPS, SKIP = 32, 2, 2
TOLERANCE = Tolerance(1e-5, 1e-4)
Kind = Literal["pair", "alone", "both"]
Result = tuple[float, float, list[float]]
"""Seconds of the window, those on a core, and the losses of this process's micro-batches."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=3, help="of a turn (default: 3)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of all")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("two processes need a core each: this machine lends only one")

    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="lensdist-two-") as name:
        scratch = Path(name)
        write_packed(scratch / "packed", SimConfig(family="model_ii"), 240, 0)
        worst = gate(scratch, cores, args.overrides)
        print(f"same losses as one process: largest relative difference {worst:.0e}\n")
        each: dict[Kind, list[float]] = {"pair": [], "alone": []}
        on_core: dict[Kind, list[float]] = {"pair": [], "alone": []}
        for i in range(args.rounds):
            for kind in ("pair", "alone") if i % 2 else ("alone", "pair"):
                found = turn(kind, scratch, cores, args.steps, args.overrides)
                # Each computes a micro-batch a step, in the pair too.
                images = args.steps * MICRO
                each[kind].append(sum(images / seconds for seconds, _, _ in found))
                on_core[kind].append(sum(images / seconds for _, seconds, _ in found))

    ratio, core = (
        spread("ratio", [a / b for a, b in zip(rates["pair"], rates["alone"], strict=True)])
        for rates in (each, on_core)
    )
    print(f"{'two processes':<14}{'images/s':>10}{'spread':>18}")
    for kind, rates in each.items():
        row = spread("rate", rates)
        low, high = row["rate_spread"]
        print(f"{kind:<14}{row['rate']:>10.4g}{f'{low:.4g} .. {high:.4g}':>18}")
    low, high = ratio["ratio_spread"]
    loads = (load_before, os.getloadavg()[0])
    print(
        f"\npair over alone: {ratio['ratio']:.3f} ({low:.3f} .. {high:.3f}), median of "
        f"{args.rounds} rounds and their range; load {loads[0]:.1f} .. {loads[1]:.1f}\n"
        f"by the time on a core, waiting left out: {core['ratio']:.3f} "
        f"({core['ratio_spread'][0]:.3f} .. {core['ratio_spread'][1]:.3f})"
    )
    if args.out:
        facts: dict[str, Any] = {"steps": args.steps, "rounds": args.rounds, "load": loads}
        facts |= {"torch": torch.__version__, "loss_difference": worst, "images_per_s": each}
        facts |= {"on_a_core": core}
        args.out.write_text(json.dumps(facts | ratio, indent=2) + "\n")


def gate(scratch: Path, cores: list[int], overrides: list[str]) -> float:
    """The largest difference of the pair's losses from those of one process.

    Raises:
        RunError: it is more than rounding: they do not compute the same step.
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
    """A process a core, all at the same time, from their start to their end.

    Args:
        kind: pair, under DDP; alone, each by itself; both, one process with the pair's step.
        scratch: holds the images.
        cores: one for each process.
        steps: that count.
        overrides: settings of the run.
    """
    context = multiprocessing.get_context("spawn")
    together, port = context.Barrier(len(cores)), free_port()
    pipes, processes = [], []
    for rank, core in enumerate(cores):
        here, there = context.Pipe(duplex=False)
        pipes.append(here)
        work = (kind, rank, core, port, scratch, steps, overrides, together, there)
        processes.append(context.Process(target=worker, args=work, daemon=True))
        processes[-1].start()
        there.close()  # or the other end would never hear that the process has ended
    try:
        return [pipe.recv() for pipe in pipes]
    except EOFError as e:
        raise SystemExit(f"{kind}: a process ended before it was done; see above") from e
    finally:
        for process in processes:
            process.join()


def worker(
    kind: Kind, rank: int, core: int, port: int, scratch: Path, steps: int, overrides: list[str],
    together: Barrier, pipe: Connection,
) -> None:  # fmt: skip
    """In a process of its own: train, and send what came of it."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    os.environ |= {"ACCELERATE_USE_CPU": "true"}
    if kind == "pair":
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"LOCAL_WORLD_SIZE": "2"}

    from lensdist.bench.speed.ours import Ours
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


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


if __name__ == "__main__":
    main()
