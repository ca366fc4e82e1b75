"""Measure the memory and the reading that a sharded checkpoint costs each process.

    OMP_NUM_THREADS=1 python -m benchmarks.checkpoint_memory --out checkpoint_memory.json

A network of 100 million parameters trains for a step under FSDP: with Adam's two moments its state
is 1.2 GB. Its processes save it, and as many new ones resume from it. `by share`: each process
writes and reads its part (`lensdist/training/shares.py`). `whole`: the main process gathers and
writes all, and every process reads all. Peaks of resident memory are above the memory in use just
before: for a save, that of the trained shards; for a resume, that of the imports, so that building
the network counts.
"""

from __future__ import annotations

import json
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.elastic.utils.distributed import get_free_port

from benchmarks.harness.processes import answers
from benchmarks.harness.report import options, reporting

CPU = torch.device("cpu")
Way = Literal["by share", "whole"]
Moment = Literal["save", "resume"]


def main() -> None:
    parser = options(__doc__, rounds=1)
    parser.add_argument("--processes", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--megabytes", type=int, default=1200, help="of state (default: 1200)")
    args = parser.parse_args()
    title = f"Checkpoints of {args.megabytes} MB on {args.processes} processes"
    with reporting(args, title, CPU, processes=args.processes) as (report, scratch):
        rows: list[dict[str, Any]] = []
        ways: tuple[Way, ...] = ("by share", "whole")
        for number in range(args.rounds):
            for way in ways:
                root = scratch / f"{way}-{number}"
                for moment in ("save", "resume"):
                    each = turn(moment, way, args.processes, args.megabytes, root)
                    rows.append({"way": way, "moment": moment, **largest(each)})
                    print(rows[-1], flush=True)
        report.table(rows)
        report.say("Each number is that of the process where it is largest.")


def largest(each: list[dict[str, float]]) -> dict[str, float]:
    """Return the largest value of each measurement over the processes."""
    return {name: round(max(one[name] for one in each), 3) for name in each[0]}


def turn(
    moment: Moment, way: Way, processes: int, megabytes: int, root: Path
) -> list[dict[str, float]]:
    """Start processes that save or resume, and return what each measured."""
    port = get_free_port()  # type: ignore[no-untyped-call]
    works = [(moment, way, rank, processes, port, megabytes, root) for rank in range(processes)]
    return answers(worker, works, f"{moment}, {way}")


class Measured:
    """Peak of resident memory in GB and bytes read in GB since it was made."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is in use
        self._before, self._read = _status("VmRSS"), _read_gb()
        self._began = time.perf_counter()

    def result(self) -> dict[str, float]:
        """Return the measurements so far."""
        return {
            "peak_gb": _status("VmHWM") - self._before,
            "read_gb": _read_gb() - self._read,
            "seconds": time.perf_counter() - self._began,
        }


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(name))


def _read_gb() -> float:
    """Return the GB that this process has read from files, the page cache included."""
    return int(Path("/proc/self/io").read_text().split()[1]) / 1e9


def layers(megabytes: int) -> nn.Module:
    """Return a network whose weights and moments are about this large."""
    return nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(round(megabytes / 12))))


def worker(
    moment: Moment, way: Way, rank: int, processes: int, port: int, megabytes: int, root: Path,
    pipe: Connection,
) -> None:  # fmt: skip
    """Save or resume in a process of its own, and send the measurements."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "ACCELERATE_USE_CPU": "true"}

    from lensdist.distributed.config import OptimConfig, ShardConfig, SpeedConfig
    from lensdist.distributed.context import DistributedContext
    from lensdist.distributed.micro_batches import plan_steps
    from lensdist.distributed.strategies import StrategySettings, build_strategy
    from lensdist.training import checkpoint
    from lensdist.training.async_saver import Saver
    from lensdist.training.shares import Together
    from lensdist.utils.tensors import read_safetensors

    world = DistributedContext(sharded=True)
    settings = StrategySettings(
        OptimConfig(), ShardConfig(stage=3), SpeedConfig(), "no", None, False
    )
    plan = plan_steps(processes, 1, processes, rank, processes)
    world.barrier()
    measured = Measured()
    strategy = build_strategy("fsdp", settings, world, plan, lambda: layers(megabytes))
    tensors: dict[str, Any] = {}
    if moment == "resume" and way == "by share":
        tensors = checkpoint.read(root / "step-00000001", lazy=True, world=world).tensors
    elif moment == "resume":
        path = root / "step-00000001" / "state.safetensors"
        tensors = read_safetensors(path, path.stat().st_size, _digest(path))
    if tensors:
        strategy.load(tensors)
    strategy.freeze(lambda name: True, tensors)
    strategy.wrap(strategy.unwrapped, tensors)
    tensors.clear()
    if moment == "save":
        strategy.backward(strategy.wrapped(torch.rand(1, 1000)).square().mean())
        strategy.step(1e-3, 1)
        world.barrier()
        together = Together(world) if way == "by share" else None
        saver = Saver(root, 1, True, complain, together)
        measured = Measured()
        if together is not None:
            saver.save_shares(1, strategy.shares(), {}, set())
        else:
            state = strategy.state_dict()
            if world.main:
                saver.save(1, state, {}, set())
        saver.wait()
    pipe.send(measured.result())
    pipe.close()
    world.close(0, together=True)


def _digest(path: Path) -> str:
    manifest = json.loads((path.parent / "checkpoint.json").read_text())
    return str(manifest["files"][path.name]["sha256"])


def complain(step: int, sentence: str) -> None:
    """End the benchmark: a save that fails is not a measurement."""
    raise SystemExit(f"step {step}: {sentence}")


if __name__ == "__main__":
    main()
