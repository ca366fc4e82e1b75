"""Host time that a training loop adds to each step: lensdist's, Lightning's and a bare one.

    OMP_NUM_THREADS=1 python benchmarks/loop_overhead.py --out loop_overhead.json

All three train the same tiny classifier on the same batches with the same fused AdamW and log
every 50 steps; the model is small enough that what a loop does around it shows. First a gate: all
three must give the same losses, or they do not do the same work. Then they take turns, so that a
busy machine slows all of them. A step is timed from one call of the loss to the next, so that what
a loop builds before its first step and does after its last counts for none. The bare loop is what
one writes by hand: forward, backward, step, zero, and the mean loss at log intervals; `overhead` is
time a step above it.

The batches come from one packed set in memory. lensdist fetches them as it always does, by
position through its `PackedSource`; the others are handed the same batches ready made, which
flatters them. lensdist also does here all that a run of it does: seeds each micro-batch for exact
resume, checks for signals and the STOP file, keeps the losses, writes metrics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lensdist.bench.rivals.ensembles import loss as cross_entropy
from lensdist.bench.rivals.loops import Batch, Loss, Optimizer, lightning_loop, turn_of
from lensdist.bench.speed.ours import Ours
from lensdist.bench.speed.turns import Tolerance, Way, take_turns
from lensdist.bench.speed.watch import Watch
from lensdist.config import load
from lensdist.config.schema import schema_of
from lensdist.data.dataset import PackedSet
from lensdist.data.packing.simulated import write_packed
from lensdist.sim.config import SimConfig
from lensdist.tasks.base import Stage

CLASSES, BATCH, RATE, LOG_EVERY = 3, 8, 1e-3, 50
CPU = torch.device("cpu")
TOLERANCE = Tolerance(1e-6, 1e-6)
CONFIG = Path(__file__).parents[1] / "configs/finetune/debug.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="of a turn (default: 400)")
    parser.add_argument("--rounds", type=int, default=9, help="(default: 9)")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory(prefix="lensdist-loop-") as scratch:
        ours = lensdist(Path(scratch))
        every = batches(ours, args.steps + 1)
        plain = partial(turn_of, make=network, batches=every, loss=cross_entropy, optimizer=adam)
        ways = {
            "bare PyTorch": Way(plain(bare), BATCH),
            "lensdist": ours.way,
            "Lightning": Way(plain(lightning_loop("no")), BATCH),
        }
        worst = gate(ways, args.steps)
        print(f"same losses on the same batches: largest relative difference {worst:.1e}\n")
        rows = measure(ways, args.steps, args.rounds)

    print(f"{'loop':<14}{'ms a step':>11}{'spread':>16}{'overhead ms':>13}{'spread':>18}")
    for row in rows:
        low, high = row["quartiles_ms"]
        less, more = row["overhead_quartiles_ms"]
        print(
            f"{row['loop']:<14}{row['ms']:>11.3f}{f'{low:.3f} .. {high:.3f}':>16}"
            f"{row['overhead_ms']:>13.3f}{f'{less:.3f} .. {more:.3f}':>18}"
        )
    share = rows[1]["overhead_ms"] / rows[2]["overhead_ms"]
    print(f"\nlensdist adds {share:.2f} of what Lightning adds; spreads are quartiles over rounds")
    if args.out:
        facts = {"steps": args.steps, "rounds": args.rounds, "torch": torch.__version__}
        facts |= {"largest_loss_difference": worst, "share_of_lightning": share}
        args.out.write_text(json.dumps(facts | {"rows": rows}, indent=2) + "\n")


def network() -> nn.Module:
    """The same weights every time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 8, stride=8), nn.GELU(), nn.Flatten(), nn.Linear(512, 32), nn.GELU(),
        nn.Linear(32, CLASSES),
    )  # fmt: skip


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """As lensdist's configuration below asks for."""
    return torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)


def bare(
    net: nn.Module, watch: Watch, loader: Iterable[Batch], loss: Loss, optimizer: Optimizer
) -> None:
    """The loop that one writes by hand."""
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
    """A run on one packed set."""
    write_packed(scratch / "packed", SimConfig(family="model_ii"), 60, 0)
    words = [f"run.dir={scratch / 'run'}", f"data.path={scratch / 'packed'}", "encoder=null"]
    words += [f"train.log_every={LOG_EVERY}", f"optim.lr={RATE}", f"train.global_batch={BATCH}"]
    words += ["optim.weight_decay=0", "preprocess.scale=none"]
    cfg = load(CONFIG, words, schema=schema_of)
    return Ours(cfg, PackedSet(scratch / "packed"), task=Task(), network=network())


def batches(ours: Ours, steps: int) -> list[Batch]:
    """What lensdist trains on, in order."""
    ours.source.watch = Watch(0, 1, CPU)
    places = (ours.plan.place(step, 0) for step in range(steps))
    taken = (ours.source.take(epoch, offset, BATCH) for epoch, offset in places)
    return [(batch["image"], batch["label"]) for batch in taken]


class Task:
    """The bare loop's model and loss, as lensdist asks for them."""

    name = "finetune"
    select: tuple[str, Literal["min", "max"]] = ("nll", "min")

    def __init__(self) -> None:
        self.labels: tuple[str, ...] = ("no_sub", "cdm", "axion")
        self.preprocess: Any = None

    def build(self) -> nn.Module:
        return network()

    def stages(self, epochs: int) -> list[Stage]:
        return [Stage(epochs, ("",))]

    def loss(self, model: nn.Module, batch: dict[str, Tensor], key: int) -> Tensor:
        return F.cross_entropy(model(batch["image"]), batch["label"])

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def score(self, outputs: dict[str, Tensor]) -> dict[str, Any]:
        return {"nll": 0.0}

    def describe(self) -> dict[str, Any]:
        return {}


def gate(ways: dict[str, Way], steps: int) -> float:
    """The largest relative difference between the first loop's losses and the others'.

    Raises:
        RunError: they differ by more than rounding: they do not do the same work.
    """
    found = {name: way.losses(steps, CPU) for name, way in ways.items()}
    first = next(iter(found.values()))
    return max(TOLERANCE.refuse(name, losses, first) for name, losses in found.items())


def measure(ways: dict[str, Way], steps: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds a step; what is above the bare loop is taken within a round."""
    skip = steps // 10  # warming up
    turns = {name: partial(milliseconds, way, skip, steps - skip) for name, way in ways.items()}
    each = take_turns(turns, rounds)
    base = next(iter(each.values()))
    rows = []
    for name, found in each.items():
        above = [a - b for a, b in zip(found, base, strict=True)]
        rows.append(
            {
                "loop": name,
                "ms": statistics.median(found),
                "quartiles_ms": quartiles(found),
                "overhead_ms": statistics.median(above),
                "overhead_quartiles_ms": quartiles(above),
            }
        )
    return rows


def milliseconds(way: Way, skip: int, steps: int) -> float:
    """Of a step."""
    return 1e3 * way.batch / way.timed(skip, steps, CPU).rate


def quartiles(numbers: list[float]) -> tuple[float, float]:
    """The first and the third."""
    first, _, third = statistics.quantiles(numbers, n=4, method="inclusive")
    return first, third


if __name__ == "__main__":
    main()
