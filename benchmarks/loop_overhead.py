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
import contextlib
import io
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lensdist._torchvision import import_torchvision

Batches = list[tuple[Tensor, Tensor]]
Turn = tuple[list[Tensor], list[float]]  # losses, and when each was asked for
CLASSES, BATCH, RATE, LOG_EVERY = 3, 8, 1e-3, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="of a turn (default: 400)")
    parser.add_argument("--rounds", type=int, default=9, help="(default: 9)")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory(prefix="lensdist-loop-") as scratch:
        ours = Lensdist(Path(scratch), args.steps)
        batches = ours.batches()
        loops: dict[str, Callable[[], Turn]] = {
            "bare PyTorch": lambda: bare(batches),
            "lensdist": ours.turn,
            "Lightning": lightning(batches),
        }
        worst = gate(loops)
        print(f"same losses on the same batches: largest difference {worst:.1e}\n")
        rows = measure(loops, args.rounds)

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


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """As lensdist's configuration below asks for."""
    return torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)


def bare(batches: Batches) -> Turn:
    """The loop that one writes by hand."""
    model = network()
    optimizer = optimizer_of(model)
    losses, times = [], []
    for step, (image, label) in enumerate(batches, start=1):
        times.append(time.perf_counter())
        loss = F.cross_entropy(model(image), label)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if step % LOG_EVERY == 0:
            float(torch.stack(losses[-LOG_EVERY:]).mean())
    return losses, times


def lightning(batches: Batches) -> Callable[[], Turn]:
    """Lightning's Trainer with checkpoints, progress bar and summary switched off."""
    import_torchvision()
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    class Ready:  # a plain list would be taken for a collection of loaders
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(batches)

        def __len__(self) -> int:
            return len(batches)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network()
            self.losses: list[Tensor] = []
            self.times: list[float] = []

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            self.times.append(time.perf_counter())
            image, label = batch
            loss = F.cross_entropy(self.model(image), label)
            self.losses.append(loss.detach())
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self.model)

    def turn() -> Turn:
        module = Module()
        trainer = lightning.Trainer(
            accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=LOG_EVERY,
        )  # fmt: skip
        trainer.fit(module, train_dataloaders=Ready())
        return module.losses, module.times

    return turn


class Lensdist:
    """A run of `lensdist.engine.loop.train`, again and again from the start."""

    def __init__(self, scratch: Path, steps: int) -> None:
        from lensdist.config import load
        from lensdist.config.schema import schema_of
        from lensdist.data.packed import PackedSet
        from lensdist.data.source import PackedSource, View
        from lensdist.engine.world import World
        from lensdist.sim.config import SimConfig
        from lensdist.sim.write import write_packed

        write_packed(scratch / "packed", SimConfig(family="model_ii"), 60, 0)
        words = [f"run.dir={scratch / 'run'}", f"data.path={scratch / 'packed'}", "encoder=null"]
        words += [f"train.max_steps={steps}", f"train.log_every={LOG_EVERY}", f"optim.lr={RATE}"]
        words += [f"train.global_batch={BATCH}", "optim.weight_decay=0", "preprocess.scale=none"]
        words += ["train.eval_every_epochs=1e9", "checkpoint.every_epochs=1e9"]
        config = Path(__file__).parents[1] / "configs/finetune/debug.yaml"
        self.cfg = load(config, words, schema=schema_of)
        self.steps = steps
        self.world = World(self.cfg)
        packed = PackedSet(scratch / "packed")
        device = self.world.device
        self.source = PackedSource(View(packed, "train", self.cfg.data, 0, device), 0)
        self.validation = View(packed, "val", self.cfg.data, 0, device)

    def batches(self) -> Batches:
        """What `turn` trains on, in order."""
        plan = self.plan()
        places = (plan.place(step, 0) for step in range(self.steps))
        taken = (self.source.take(epoch, offset, BATCH) for epoch, offset in places)
        return [(batch["image"], batch["label"]) for batch in taken]

    def plan(self) -> Any:
        """One micro-batch a step."""
        from lensdist.engine.batches import plan_steps

        return plan_steps(BATCH, BATCH, self.source.size, 0, 1)

    def turn(self) -> Turn:
        """A whole run, its last save included; nothing of lensdist is switched off."""
        from lensdist.engine.journal import Journal
        from lensdist.engine.loop import train
        from lensdist.engine.saver import Saver
        from lensdist.engine.stages import Phase
        from lensdist.engine.stopping import Stopper

        task, cfg, world = Task(), self.cfg, self.world
        with contextlib.redirect_stderr(io.StringIO()):
            journal = Journal(cfg, world, 0)
            saver = Saver(cfg.run.dir / "checkpoints", 1, True, lambda step, sentence: None)
            stopper = Stopper(cfg.run.dir, world)
            source, validation, plan = self.source, self.validation, self.plan()
            train(
                Phase(cfg, task, source, validation, plan, {}), world, journal, saver, stopper, None
            )  # fmt: skip
            journal.close()
        return task.losses, task.times


class Task:
    """The bare loop's model and loss, as lensdist asks for them."""

    name = "finetune"
    select: tuple[str, Literal["min", "max"]] = ("nll", "min")

    def __init__(self) -> None:
        self.labels: tuple[str, ...] = ("no_sub", "cdm", "axion")
        self.preprocess: Any = None
        self.losses: list[Tensor] = []
        self.times: list[float] = []

    def build(self) -> nn.Module:
        return network()

    def stages(self, epochs: int) -> list[Any]:
        from lensdist.tasks.base import Stage

        return [Stage(epochs, ("",))]

    def loss(self, model: nn.Module, batch: dict[str, Tensor], key: int) -> Tensor:
        self.times.append(time.perf_counter())
        loss = F.cross_entropy(model(batch["image"]), batch["label"])
        self.losses.append(loss.detach())
        return loss

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def score(self, outputs: dict[str, Tensor]) -> dict[str, Any]:
        return {"nll": 0.0}

    def describe(self) -> dict[str, Any]:
        return {}


def gate(loops: dict[str, Callable[[], Turn]]) -> float:
    """The largest difference between any two loops' losses.

    Raises:
        SystemExit: they differ by more than rounding: they do not do the same work.
    """
    found = [torch.stack(turn()[0]) for turn in loops.values()]
    worst = max(float((other - found[0]).abs().max()) for other in found[1:])
    if not worst <= 1e-6:
        raise SystemExit(f"losses differ by {worst}: the loops do not do the same work")
    return worst


def measure(loops: dict[str, Callable[[], Turn]], rounds: int) -> list[dict[str, Any]]:
    """Milliseconds a step; what is above the bare loop is taken within a round."""
    each: dict[str, list[float]] = {name: [] for name in loops}
    for i in range(rounds):
        order = list(loops) if i % 2 else list(reversed(loops))
        for name in order:
            _, times = loops[name]()
            skipped = len(times) // 10  # warming up
            each[name].append(1e3 * (times[-1] - times[skipped]) / (len(times) - 1 - skipped))
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


def quartiles(numbers: list[float]) -> tuple[float, float]:
    """The first and the third."""
    first, _, third = statistics.quantiles(numbers, n=4, method="inclusive")
    return first, third


if __name__ == "__main__":
    main()
