"""Time what a training loop adds to each step on the host: lensdist's, Lightning's and a bare one.

    OMP_NUM_THREADS=1 python -m benchmarks.loop_overhead --out loop_overhead.json

All three train the same tiny classifier on the same batches with the same fused AdamW and log every
50 steps; the model is so small that the loop around it is visible. A gate comes first: all three
must give the same losses, or they do not do the same work. A step is timed from one call of the
loss to the next, so that a loop's work before its first step and after its last does not count. The
bare loop is the one that a user writes: forward, backward, step, zero, and the mean loss at log
intervals; `overhead` is the time per step above it.

The batches come from one packed set in memory. lensdist fetches them as in any run, by position
through its `PackedSource`; the others get the same batches ready-made, which is to their advantage.
lensdist also does all that any of its runs does: it seeds each micro-batch for exact resume, checks
for signals and the STOP file, keeps the losses and writes metrics.jsonl.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.harness.ours import Ours
from benchmarks.harness.report import options, reporting
from benchmarks.harness.turns import Tolerance, Way, gate, take_turns
from benchmarks.harness.watch import Watch
from benchmarks.rivals.ensembles import loss as cross_entropy
from benchmarks.rivals.loops import Batch, Loss, Optimizer, lightning_loop, turn_of
from lensdist.config import load
from lensdist.config.schema import schema_of
from lensdist.data.dataset import PackedSet
from lensdist.data.packing.simulated import write_packed
from lensdist.sim.config import SimConfig

CLASSES, BATCH, RATE, LOG_EVERY = 3, 8, 1e-3, 50
CPU = torch.device("cpu")
TOLERANCE = Tolerance(1e-6, 1e-6)
CONFIG = Path(__file__).parents[1] / "configs/finetune/debug.yaml"


def main() -> None:
    parser = options(__doc__, rounds=9)
    parser.add_argument("--steps", type=int, default=400, help="per turn (default: %(default)s)")
    args = parser.parse_args()
    with reporting(args, "Overhead of a training loop", CPU, steps=args.steps) as (report, scratch):
        ours = lensdist(scratch)
        every = batches(ours, args.steps + 1)
        plain = partial(turn_of, make=network, batches=every, loss=cross_entropy, optimizer=adam)
        ways = {
            "bare PyTorch": Way(plain(bare), BATCH),
            "lensdist": ours.way,
            "Lightning": Way(plain(lightning_loop("no")), BATCH),
        }
        report.gated(gate(ways, ways["bare PyTorch"], CPU, TOLERANCE, args.steps))
        rows = measure(ways, args.steps, args.rounds)
        report.table(rows)
        share = rows[1]["overhead_ms"] / rows[2]["overhead_ms"]
        report.facts["share_of_lightning"] = share
        report.say(f"lensdist adds {share:.2f} of what Lightning adds; in brackets, quartiles.")


def network() -> nn.Module:
    """Return the network, with the same weights every time."""
    torch.manual_seed(0)
    parts = nn.Sequential(
        nn.Conv2d(1, 8, 8, stride=8), nn.GELU(), nn.Flatten(), nn.Linear(512, 32), nn.GELU()
    )
    named = OrderedDict([("encoder", parts), ("head", nn.Linear(32, CLASSES))])
    return nn.Sequential(named)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of lensdist's configuration below."""
    return torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)


def bare(
    net: nn.Module, watch: Watch, loader: Iterable[Batch], loss: Loss, optimizer: Optimizer
) -> None:
    """Train with a hand-written loop."""
    steps = optimizer(net)
    for number, batch in enumerate(watch.over(loader), start=1):
        value, _ = loss(net, batch)
        value.backward()  # type: ignore[no-untyped-call]
        steps.step()
        steps.zero_grad()
        watch.losses.append(value.detach())
        if number % LOG_EVERY == 0:
            float(torch.stack(watch.losses[-LOG_EVERY:]).mean())


def lensdist(scratch: Path) -> Ours:
    """Return a run on one packed set, with the network in place of its own."""
    write_packed(scratch / "packed", SimConfig(family="model_ii"), 60, 0)
    words = [f"run.dir={scratch / 'run'}", f"data.path={scratch / 'packed'}", "encoder=null"]
    words += [f"train.log_every={LOG_EVERY}", f"optim.lr={RATE}", f"train.global_batch={BATCH}"]
    words += ["optim.weight_decay=0", "preprocess.scale=none", "label_smoothing=0"]
    words += [f"augment.{way}=false" for way in ("rot180", "rot90", "flip")]
    cfg = load(CONFIG, words, schema=schema_of)
    return Ours(cfg, PackedSet(scratch / "packed"), network=network())


def batches(ours: Ours, steps: int) -> list[Batch]:
    """Return lensdist's training batches, in order."""
    ours.source.watch = Watch(0, 1, CPU)
    places = (ours.plan.place(step, 0) for step in range(steps))
    taken = (ours.source.take(epoch, offset, BATCH) for epoch, offset in places)
    return [(batch["image"], batch["label"]) for batch in taken]


def measure(ways: dict[str, Way], steps: int, rounds: int) -> list[dict[str, Any]]:
    """Return rows of milliseconds per step; differences to the bare loop are within a round."""
    skip = steps // 10  # warm-up
    turns = {name: partial(milliseconds, way, skip, steps - skip) for name, way in ways.items()}
    each = take_turns(turns, rounds)
    base = next(iter(each.values()))
    rows = []
    for name, found in each.items():
        row: dict[str, Any] = {"loop": name}
        above = [a - b for a, b in zip(found, base, strict=True)]
        for key, values in (("ms", found), ("overhead_ms", above)):
            first, median, third = statistics.quantiles(values, n=4, method="inclusive")
            row |= {key: median, f"{key}_spread": (first, third), f"{key}_each": values}
        rows.append(row)
    return rows


def milliseconds(way: Way, skip: int, steps: int) -> float:
    """Return the milliseconds of a step."""
    return 1e3 * way.batch / way.timed(skip, steps, CPU).rate


if __name__ == "__main__":
    main()
