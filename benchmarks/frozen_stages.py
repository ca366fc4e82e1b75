"""What it gains to keep the outputs of a frozen trunk, stage by stage of progressive unfreezing.

    OMP_NUM_THREADS=1 python benchmarks/frozen_stages.py --out frozen_stages.json
    python benchmarks/frozen_stages.py --size full         # the default where there is a GPU

A stage sets one section more free, from the heads back to the stems. What is still frozen makes the
same of an image in every epoch, so lensdist computes it once a stage, for every view that
augmentation shows (`lensdist.engine.feature_cache`). Here each stage is entered twice, with the
same weights, kept and not kept. First a gate: the first steps' losses must be the same. Then whole
epochs of both, and filling the table, take turns, so that a busy machine slows all of them. An
epoch is the loop's own steps (batch, seeds, forward, backward, optimizer) without its log.

`stage` and the last line are for epochs as the recipe shares them out, in proportion to each
section's parameters, filling included. Where a stage's epochs are no more than an image's views,
filling costs more than it saves and lensdist computes as ever: that stage's gain is 1, and counts
as 1 in the last line. `GB of all` is the memory for the training images of the public set;
`cache.max_gb` bounds it in a run (default 4: `fits`), which the last line does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensdist import rng
from lensdist.config import load
from lensdist.config.schema import CommonRun, schema_of
from lensdist.data.augment import views
from lensdist.data.dataset import PackedSet
from lensdist.data.packing.simulated import write_packed
from lensdist.data.sampler import PackedSource, Source
from lensdist.data.subset import View
from lensdist.data.transforms import Preprocess
from lensdist.engine.batches import plan_steps
from lensdist.engine.config import CacheConfig
from lensdist.engine.feature_cache import CachedSource, cached
from lensdist.engine.parallel import build_engine
from lensdist.engine.parallel.base import Engine
from lensdist.engine.stages import Entered, Phase, StageSteps, enter
from lensdist.engine.torch_settings import settle
from lensdist.engine.world import World
from lensdist.sim.config import SimConfig
from lensdist.tasks.base import Stage
from lensdist.tasks.common import CommonTask

CONFIG = Path(__file__).parents[1] / "configs/common/unfreeze-ensemble.yaml"
EPOCH = 30_000  # images to train on in the public set
GATE_STEPS = 2
Begun = tuple[Engine, Entered]


@dataclass(frozen=True)
class Size:
    """What is trained, and on how much."""

    members: tuple[str, ...]
    pixels: int
    precision: str
    batch: int
    eval_batch: int
    """Images at a time when the table is filled."""
    per_class: int
    tolerance: float
    """Of the losses: a trunk's last bits depend on how many images it is given at once."""


SIZES = {
    "small": Size(("densenet121", "resnet18"), 64, "no", 16, 16, 22, 1e-3),
    "full": Size(("densenet161", "resnet18"), 150, "bf16", 256, 256, 2500, 5e-2),
}


class Bench:
    """The stages of one schedule, on one simulated set."""

    def __init__(self, size: Size, scratch: Path) -> None:
        words = [f"run.dir={scratch / 'run'}", f"data.path={scratch / 'packed'}", "init=random"]
        words += [f"model.members=[{','.join(size.members)}]", f"model.resize={size.pixels}"]
        words += ["model.grey=fold", f"precision={size.precision}", "train.deterministic=false"]
        words += [f"train.global_batch={size.batch}", f"train.eval_batch={size.eval_batch}"]
        cfg = load(CONFIG, words, schema=schema_of)
        assert isinstance(cfg, CommonRun)
        self.cfg, self.world, self.size = cfg, World(cfg), size
        device = self.world.device
        family = SimConfig(family="common")
        write_packed(scratch / "packed", family, size.per_class, 0, device=device.type)
        settle(cfg, device)
        view = View(PackedSet(scratch / "packed"), "train", cfg.data, 0, device)
        self.validation, self.source = view, PackedSource(view, 0)
        self.plan = plan_steps(size.batch, size.batch, self.source.size, 0, 1)
        preprocess = Preprocess(cfg.preprocess, [0.0], [1.0])
        self.task = CommonTask(cfg, tuple(view.labels), preprocess, None)
        self.views = len(views(cfg.augment))
        self.stages = self.task.stages(cfg.train.epochs)

    def enter(self, stage: Stage, max_gb: float) -> Begun:
        """The stage with the same weights every time, for more epochs than there are views."""
        torch.manual_seed(0)
        engine = build_engine(self.cfg, self.world, self.plan, self.task.build)
        cfg = self.cfg.model_copy(update={"cache": CacheConfig(max_gb=max_gb)})
        phase = Phase(cfg, self.task, self.source, self.validation, self.plan, {})
        longer = Stage(self.views + 1, stage.trainable)
        return engine, enter(StageSteps(longer, 0, 1), engine, phase, self.world, {})

    def train(self, begun: Begun, steps: int) -> list[Tensor]:
        """The steps of `lensdist.engine.loop`, from the first one of epoch 0."""
        engine, now = begun
        losses = []
        for step in range(steps):
            epoch, offset = self.plan.place(step, 0)
            batch = now.source.take(epoch, offset, self.plan.micro_batch)
            self.world.seed(rng.key(self.cfg.seed, "dropout", step, 0))
            now.statistics.begin()
            with engine.micro_batch(0):
                loss = self.task.loss(engine.model, batch, rng.key(self.cfg.seed, "draw", epoch))
                engine.backward(loss)
            now.statistics.collect()
            now.statistics.finish()
            engine.step(self.cfg.optim.lr, step + 1)
            losses.append(loss.detach())
        return losses

    def filling(self, stage: Stage) -> Callable[[], object]:
        """What computes the table, once more at each call; nothing where nothing is frozen."""
        torch.manual_seed(0)
        bare = self.task.build().to(self.world.device).eval()
        split = self.task.split(bare, stage.trains)
        assert split is not None
        cfg = self.cfg.model_copy(update={"cache": CacheConfig(max_gb=1e9)})
        more = self.views + 1
        return lambda: cached(self.task, split.trunk, self.source, more, cfg, self.world)

    def seconds(self, work: Callable[[], object]) -> float:
        """Of wall-clock time, until the device is done."""
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def measure(self, number: int, rounds: int) -> dict[str, Any]:
        """A stage's row."""
        stage = self.stages[number]
        steps = self.plan.steps_per_epoch
        plain = self.enter(stage, 0)
        row: dict[str, Any] = {"stage": name_of(stage, number), "epochs": stage.epochs}
        ways: dict[str, Callable[[], object]] = {"plain": lambda: self.train(plain, steps)}
        if number < len(self.stages) - 1:  # the last one freezes nothing
            kept = self.enter(stage, 1e9)
            source = kept[1].source
            assert isinstance(source, CachedSource), kept[1].kept
            row["loss_difference"] = self.gate(plain, kept, row["stage"])
            row["bytes_an_image"] = self.views * bytes_of(source)
            ways |= {"kept": lambda: self.train(kept, steps), "fill": self.filling(stage)}
        each: dict[str, list[float]] = {name: [] for name in ways}
        for i in range(rounds):
            for name in list(ways) if i % 2 else reversed(ways):
                each[name].append(self.seconds(ways[name]))
        row["seconds"] = {name: statistics.median(found) for name, found in each.items()}
        row["spread"] = {name: (min(found), max(found)) for name, found in each.items()}
        row |= gains(each, stage.epochs, self.views)
        return row

    def gate(self, plain: Begun, kept: Begun, name: str) -> float:
        """The largest relative difference of the first losses.

        Raises:
            SystemExit: they differ by more than rounding.
        """
        one, other = (torch.stack(self.train(way, GATE_STEPS)).float() for way in (plain, kept))
        apart = float((other / one - 1).abs().max())
        if not apart <= self.size.tolerance:
            raise SystemExit(f"{name}: losses {one.tolist()}, kept {other.tolist()}")
        return apart


def gains(each: dict[str, list[float]], epochs: int, views: int) -> dict[str, Any]:
    """An epoch's, the stage's, and the stage's seconds both ways; ratios within a round."""
    rounds = len(each["plain"])
    kept, fill = each.get("kept", each["plain"]), each.get("fill", [0.0] * rounds)
    worth = "kept" in each and epochs > views
    whole = [epochs * p for p in each["plain"]]
    with_it = [f + epochs * k for f, k in zip(fill, kept, strict=True)] if worth else whole
    median = statistics.median
    return {
        "epoch_gain": median(p / k for p, k in zip(each["plain"], kept, strict=True)),
        "stage_gain": median(a / b for a, b in zip(whole, with_it, strict=True)),
        "stage_s": (median(whole), median(with_it)),
        "worth_it": worth,
    }


def name_of(stage: Stage, number: int) -> str:
    """What the stage sets free."""
    newest = max(stage.trainable, key=lambda prefix: stage.trainable.index(prefix))
    section = newest.rstrip(".").rpartition(".")[2]
    return section if number == 0 else f"+{section}"


def bytes_of(source: Source) -> int:
    """Of what is kept of one view of one image."""
    one = source.take(0, 0, 1)
    return sum(value.nbytes for name, value in one.items() if name.startswith("features."))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = "full" if torch.cuda.is_available() else "small"
    parser.add_argument("--size", choices=SIZES, default=default, help=f"(here: {default})")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size, load_before = SIZES[args.size], os.getloadavg()[0]

    with tempfile.TemporaryDirectory(prefix="lensdist-frozen-") as scratch:
        bench = Bench(size, Path(scratch))
        rows = [bench.measure(number, args.rounds) for number in range(len(bench.stages))]

    cuda = bench.world.device.type == "cuda"
    where = torch.cuda.get_device_name() if cuda else f"{args.threads} thread(s)"
    images = bench.source.size
    worst = max(row.get("loss_difference", 0.0) for row in rows)
    print(f"same losses, kept or not: largest relative difference {worst:.0e}\n")
    print(
        f"{' + '.join(size.members)}, {size.pixels} px, batch {size.batch}, precision "
        f"{size.precision}, {where}; {images} images an epoch, {bench.views} view(s) of each kept"
    )
    head = f"{'free':<8}{'epochs':>7}{'s an epoch':>12}{'kept':>9}{'gain':>8}{'to fill':>9}"
    print(f"{head}{'MB':>8}{'stage':>8}{'GB of all':>11}  fits 4 GB")
    for row in rows:
        s = row["seconds"]
        start = f"{row['stage']:<8}{row['epochs']:>7}{s['plain']:>12.3f}"
        if "kept" not in s:
            print(f"{start}{'nothing is frozen':>26}{'':>8}{row['stage_gain']:>7.2f}x")
            continue
        of_all = row["bytes_an_image"] * EPOCH / 1e9
        print(
            f"{start}{s['kept']:>9.3f}{row['epoch_gain']:>7.1f}x{s['fill']:>9.2f}"
            f"{row['bytes_an_image'] * images / 1e6:>8.2f}{row['stage_gain']:>7.2f}x"
            f"{of_all:>11.2f}  {'yes' if of_all <= CacheConfig().max_gb else 'no'}"
            f"{'' if row['worth_it'] else ', but not worth it'}"
        )
    plain, kept = (sum(row["stage_s"][i] for row in rows) for i in (0, 1))
    loads = (load_before, os.getloadavg()[0])
    print(
        f"\nthe schedule's {sum(row['epochs'] for row in rows)} epochs: {plain:.1f} s, kept "
        f"{kept:.1f} s: {plain / kept:.2f}x; medians of {args.rounds} rounds; "
        f"load {loads[0]:.1f} .. {loads[1]:.1f}"
    )
    if args.out:
        facts = {"size": asdict(size), "rounds": args.rounds, "device": where, "images": images}
        facts |= {"torch": torch.__version__, "load": loads, "schedule_gain": plain / kept}
        args.out.write_text(json.dumps(facts | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
