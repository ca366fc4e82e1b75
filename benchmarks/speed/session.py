"""One configuration, its images, and runs of it with changed settings."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.harness.data import simulated_set
from benchmarks.harness.ours import Ours
from benchmarks.harness.turns import (
    BATCHNORM,
    PARITY_STEPS,
    ROUNDING,
    Tolerance,
    Way,
    compare,
    gate,
)
from benchmarks.rivals.tasks import Rivals, fill
from benchmarks.speed.settings import SpeedBench
from lensdist.config import load
from lensdist.config.schema import BaseRun, schema_of
from lensdist.data.dataset import PackedSet
from lensdist.runs.accelerate_launch import agreed, from_environment
from lensdist.runs.phase import context_of
from lensdist.utils.errors import UserError
from lensdist.utils.owners import remove, temporary

_STEPS_OF_DATA = 8  # a simulated set holds the images of so many steps, but at least
_LEAST = 1024  # images in all
_MOST_FILES = 4096
# The gates leave out random draws and settings that amplify rounding.
STILL = ("optim.schedule.kind=constant", "optim.schedule.warmup_steps=0")
BARE = ("precision=no", "optim.weight_decay=0", "optim.clip_norm=null", "train.micro_batch=auto")
UNTURNED = tuple(f"augment.{way}=false" for way in ("rot180", "rot90", "flip"))
GENTLE = "optim.lr=1e-5"  # BatchNorm and Adam amplify rounding at a recipe's rate


class Session:
    """The state that all measurements of one command share.

    Args:
        bench: the command's settings.

    Raises:
        UserError: the configuration, the data or the launcher's settings are wrong.
    """

    def __init__(self, bench: SpeedBench) -> None:
        self.bench = bench
        self.scratch = temporary(bench.out / "scratch")  # deleted: must not be a user's
        self._launcher = from_environment(os.environ)  # the context removes these settings
        self.cfg = self.load()
        self.world = context_of(self.cfg)
        self.scratch = self.world.from_main(self.scratch)
        self.cfg = self.load()
        self.device = self.world.device
        cuda = self.device.type == "cuda"
        self.skip = 10 if cuda else 3  # checkpoint buffers are allocated in the second step
        self.steps = bench.window_steps or (50 if cuda else 4)
        self.workers = 8 if cuda else 0  # of timm's and Lightning's loaders
        self.packed, self.larger = self._images()

    def load(self, *more: str) -> BaseRun:
        """Return the configuration with changed settings."""
        words = [*self.bench.overrides, f"run.dir={self.scratch / 'run'}", *more]
        return agreed(load(self.bench.config, words, schema=schema_of), self._launcher)

    @cached_property
    def batchnorm(self) -> bool:
        """Whether the network has BatchNorm, whose statistics depend on the micro-batch."""
        return any(isinstance(module, _BatchNorm) for module in self.ours().network.modules())

    @property
    def rounding(self) -> Tolerance:
        """The tolerance of the losses of `still` for rounding alone."""
        return BATCHNORM if self.batchnorm else ROUNDING

    def ours(self, *more: str) -> Ours:
        """Return a run with changed settings."""
        saves = any(word.startswith("checkpoint.every_steps=") for word in more)
        return Ours(self.load(*more), self.packed, saves=saves)

    def still(self, *more: str) -> Ours:
        """Return a run without dropout and schedule, to compare others' losses with."""
        none = (f"{name}=0" for name in dropouts(self.cfg.model_dump()["model"], "model"))
        return self.ours(*STILL, *none, *((GENTLE,) if self.batchnorm else ()), *more)

    def rivals(self, ours: Ours, *, shuffle: bool) -> Rivals:
        """Return the rivals of a run, on the same images."""
        files = self.scratch / "items"
        workers = self.workers if shuffle else 0
        return fill(Rivals(ours, files, first_rows(ours), shuffle, workers))

    def gate(self, *more: str) -> tuple[dict[str, float], dict[str, str]]:
        """Compare the losses of the run's rivals with its own, on the same batches.

        Returns:
            The largest relative difference of each rival, and why others were left out.

        Raises:
            RunError: a difference is larger than rounding.
        """
        still = self.still(*BARE, *UNTURNED, *more)
        rivals = self.rivals(still, shuffle=False)
        if not rivals.ways:
            return {}, rivals.left_out
        torch.backends.cudnn.allow_tf32 = False
        try:
            steps = parity_steps(still)
            worst = gate(rivals.ways, still.way, self.device, self.rounding, steps)
        finally:
            torch.backends.cudnn.allow_tf32 = True
        return worst, rivals.left_out

    def compare(self, ways: Mapping[str, Way], rounds: int) -> list[dict[str, Any]]:
        """Time ways in turns; see `turns.compare`."""
        return compare(ways, self.device, skip=self.skip, steps=self.steps, rounds=rounds)

    def clean(self) -> None:
        """Delete the files of the runs."""
        if self.world.main:  # the others write nothing
            remove(self.scratch)

    def _images(self) -> tuple[PackedSet, float]:
        """Return the set, and the ratio of the run's own size to it."""
        cfg = self.cfg.data
        if cfg.path is not None:
            return PackedSet(cfg.path), 1.0
        assert cfg.sim is not None  # checked by the configuration
        wanted = max(_LEAST, _STEPS_OF_DATA * self.cfg.train.global_batch)
        # A tenth each is for validation and test, and a run may use only one class.
        n = min(cfg.n_per_class, -(-wanted * 10 // 8))
        if cfg.labels_per_class is not None:
            n = cfg.n_per_class
        place = self.bench.out / "data"
        if self.world.main:
            simulated_set(place, cfg.sim, n, self.cfg.seed, truth=cfg.sim.family == "sr")
        self.world.barrier()
        if not place.exists():
            raise UserError(f"{place} does not exist: all nodes must see the same --out")
        return PackedSet(place), cfg.n_per_class / n


def dropouts(settings: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Yield the dotted names of all dropout rates in a network's settings."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from dropouts(value, f"{prefix}.{name}")
        elif name.endswith("dropout"):
            yield f"{prefix}.{name}"


def parity_steps(ours: Ours) -> int:
    """Return the number of steps to compare losses over, within the first epoch.

    Raises:
        UserError: it has fewer than two.
    """
    steps = ours.plan.steps_per_epoch
    if steps < 2:
        raise UserError(
            f"the {ours.source.size} training images make one step of train.global_batch "
            f"{ours.cfg.train.global_batch}, too few to compare losses; lower it"
        )
    return min(PARITY_STEPS, steps)


def first_rows(ours: Ours) -> list[int]:
    """Return rows of the packed set in the order in which the first epoch trains on them."""
    least = PARITY_STEPS * ours.cfg.train.global_batch
    n = min(ours.source.size, max(_MOST_FILES, least))
    places = ours.source.places(0, 0, n) if hasattr(ours.source, "places") else []
    return [int(row) for row in ours.rows[places]]
