"""Time the gain of caching a frozen trunk's outputs, stage by stage of progressive unfreezing.

    OMP_NUM_THREADS=1 python -m benchmarks.frozen_stages --out frozen_stages.json
    python -m benchmarks.frozen_stages --size full         # the default on a GPU

Each stage unfreezes one more section, from the heads back to the stems. The part that is still
frozen gives the same output for an image in every epoch, so lensdist computes it once per stage,
for every view of the augmentation (`lensdist.training.feature_cache`). Here each stage is entered
twice, with the same weights, with and without the cache. A gate comes first: the losses of the
first steps must be the same. Then whole epochs of both, and filling the cache, take turns, so that
a busy machine slows all of them. An epoch is the loop's own steps (batch, seeds, forward, backward,
optimizer) without its log.

`stage` and the last line are for the recipe's epochs, which are in proportion to each section's
parameters; filling is included. If a stage's epochs do not exceed an image's views, filling costs
more than it saves and lensdist does not cache: that stage's gain is 1, and counts as 1 in the last
line. `GB of all` is the memory for the training images of the public set; `cache.max_gb` bounds it
in a run (default 4: `fits`), which the last line ignores.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.hardware import seconds
from benchmarks.harness.report import options, reporting
from benchmarks.harness.turns import Tolerance, over, spread, take_turns
from benchmarks.speed.session import Session
from benchmarks.speed.settings import SpeedBench
from lensdist.data.augment import views
from lensdist.data.sampler import PackedSource, Source
from lensdist.distributed.config import CacheConfig
from lensdist.distributed.determinism import set_determinism
from lensdist.distributed.strategies import StrategySettings, build_strategy
from lensdist.distributed.strategies.base import ParallelStrategy
from lensdist.tasks.types import Stage
from lensdist.training.feature_cache import CachedSource, cached
from lensdist.training.stages import Entered, Phase, StageSteps, enter
from lensdist.utils import rng

CONFIG = Path(__file__).parents[1] / "configs/common/unfreeze-ensemble.yaml"
EPOCH = 30_000  # images to train on in the public set
GATE_STEPS = 2
Begun = tuple[ParallelStrategy, Entered]


@dataclass(frozen=True)
class Size:
    """A size: the networks, the images and the batch."""

    members: tuple[str, ...]
    pixels: int
    precision: str
    batch: int
    per_class: int
    tolerance: float
    """Relative tolerance of the losses: a trunk's last bits depend on the images per call."""


SIZES = {
    "small": Size(("densenet121", "resnet18"), 64, "no", 16, 22, 1e-3),
    "full": Size(("densenet161", "resnet18"), 150, "bf16", 256, 2500, 5e-2),
}


class Bench:
    """The stages of one schedule, on one simulated set."""

    def __init__(self, size: Size, out: Path) -> None:
        words = ["init=random", f"model.members=[{','.join(size.members)}]", "model.grey=fold"]
        words += [f"model.resize={size.pixels}", f"precision={size.precision}"]
        words += [f"train.global_batch={size.batch}", f"train.eval_batch={size.batch}"]
        words += [f"data.n_per_class={size.per_class}", "train.deterministic=false"]
        session = Session(SpeedBench(config=CONFIG, out=out, overrides=tuple(words)))
        self.ours, self.tolerance = session.ours(), Tolerance(size.tolerance, size.tolerance)
        self.cfg, self.world, self.plan = self.ours.cfg, self.ours.world, self.ours.plan
        self.task, self.views = self.ours.task, len(views(self.cfg.augment))
        assert isinstance(self.ours.source, PackedSource)
        self.source = PackedSource(self.ours.source.view, self.cfg.seed)  # one without a watch
        self.stages = self.task.stages(self.cfg.train.epochs)
        set_determinism(
            self.world.device,
            deterministic=self.cfg.train.deterministic,
            precision=self.cfg.precision,
        )

    def enter(self, stage: Stage, max_gb: float) -> Begun:
        """Enter a stage with the same weights every time, for more epochs than there are views."""
        torch.manual_seed(0)
        settings = StrategySettings(
            self.cfg.optim,
            self.cfg.shard,
            self.cfg.speed,
            self.cfg.precision,
            self.cfg.train.ema,
            self.cfg.train.reproducible,
        )
        strategy = build_strategy("ddp", settings, self.world, self.plan, self.task.build)
        cfg = self.cfg.model_copy(update={"cache": CacheConfig(max_gb=max_gb)})
        phase = Phase(cfg, self.task, self.source, self.ours.validation, self.plan, {})
        longer = Stage(self.views + 1, stage.trainable)
        return strategy, enter(StageSteps(longer, 0, 1), strategy, phase, self.world, {})

    def train(self, begun: Begun, steps: int) -> list[Tensor]:
        """Do the steps of `lensdist.training.loop`, from the first one of epoch 0."""
        strategy, now = begun
        losses = []
        for step in range(steps):
            epoch, offset = self.plan.place(step, 0)
            batch = now.source.take(epoch, offset, self.plan.micro_batch)
            self.world.seed(rng.key(self.cfg.seed, "dropout", step, 0))
            now.statistics.begin()
            with strategy.micro_batch(0):
                loss = self.task.loss(
                    strategy.wrapped, batch, rng.key(self.cfg.seed, "draw", epoch)
                )
                strategy.backward(loss)
            now.statistics.collect()
            now.statistics.finish()
            strategy.step(self.cfg.optim.lr, step + 1)
            losses.append(loss.detach())
        return losses

    def filling(self, stage: Stage) -> Callable[[], object]:
        """Return a function that fills the cache again at each call."""
        torch.manual_seed(0)
        bare = self.task.build().to(self.world.device).eval()
        task = self.task
        split = task.split(bare, stage.trains)
        assert split is not None
        return lambda: cached(
            task,
            split.trunk,
            self.source,
            self.views + 1,
            self.world,
            augment=self.cfg.augment,
            seed=self.cfg.seed,
            batch=self.cfg.train.eval_batch,
            max_gb=1e9,
        )

    def measure(self, number: int, rounds: int) -> dict[str, Any]:
        """Return a stage's row."""
        stage = self.stages[number]
        plain = self.enter(stage, 0)
        row: dict[str, Any] = {"free": name_of(stage, number), "epochs": stage.epochs}
        steps = self.plan.steps_per_epoch
        ways: dict[str, Callable[[], object]] = {"plain": partial(self.train, plain, steps)}
        if number < len(self.stages) - 1:  # the last one freezes nothing
            kept = self.enter(stage, 1e9)
            source = kept[1].source
            assert isinstance(source, CachedSource), kept[1].kept
            one, other = (torch.stack(self.train(way, GATE_STEPS)) for way in (plain, kept))
            row["loss_difference"] = self.tolerance.refuse(row["free"], other.float(), one.float())
            row["gb_of_all"] = self.views * bytes_of(source) * EPOCH / 1e9
            row["fits"] = "yes" if row["gb_of_all"] <= CacheConfig().max_gb else "no"
            ways |= {"kept": partial(self.train, kept, steps), "fill": self.filling(stage)}
        device = self.world.device
        turns = {name: partial(seconds, way, device) for name, way in ways.items()}
        return row | gains(take_turns(turns, rounds), stage.epochs, self.views)


def gains(each: dict[str, list[float]], epochs: int, views: int) -> dict[str, Any]:
    """Return seconds and gains of an epoch and of the stage; ratios are taken within a round."""
    plain = each["plain"]
    row: dict[str, Any] = {}
    for name, found in each.items():
        row |= spread(f"{name}_s", found)
    whole = with_it = [epochs * p for p in plain]
    if "kept" in each:
        row |= over("epoch_gain", plain, each["kept"])
        row["worth_it"] = "yes" if epochs > views else "no"
        if epochs > views:
            pairs = zip(each["fill"], each["kept"], strict=True)
            with_it = [fill + epochs * kept for fill, kept in pairs]
    row |= over("stage_gain", whole, with_it)
    return row | {"stage_s": (statistics.median(whole), statistics.median(with_it))}


def name_of(stage: Stage, number: int) -> str:
    """Return the name of the section that the stage unfreezes."""
    section = stage.trainable[-1].rstrip(".").rpartition(".")[2]
    return section if number == 0 else f"+{section}"


def bytes_of(source: Source) -> int:
    """Return the bytes that are cached for one view of one image."""
    one = source.take(0, 0, 1)
    return sum(value.nbytes for name, value in one.items() if name.startswith("features."))


def main() -> None:
    args = options(__doc__, rounds=5, sizes=tuple(SIZES)).parse_args()
    size = SIZES[args.size]
    title = f"Frozen stages of {' + '.join(size.members)}, {size.pixels} px, batch {size.batch}"
    with reporting(args, title, size=asdict(size)) as (report, out):
        bench = Bench(size, out)
        rows = [bench.measure(number, args.rounds) for number in range(len(bench.stages))]
        report.gated({row["free"]: row.pop("loss_difference", 0.0) for row in rows[:-1]})
        report.table(rows)
        plain, kept = (sum(row["stage_s"][i] for row in rows) for i in (0, 1))
        report.facts["schedule_gain"] = plain / kept
        report.say(
            f"The schedule's {sum(row['epochs'] for row in rows)} epochs of {bench.source.size} "
            f"images, {bench.views} view(s) of each kept: {plain:.1f} s, kept {kept:.1f} s: "
            f"{plain / kept:.2f}x."
        )


if __name__ == "__main__":
    main()
