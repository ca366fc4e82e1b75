"""One configuration, its images, and runs of it with a setting changed here and there."""

from __future__ import annotations

from lensdist.bench.scores import simulated_set
from lensdist.bench.speed.ours import Ours
from lensdist.bench.speed.settings import SpeedBench
from lensdist.bench.speed.turns import BATCHNORM, ROUNDING, Tolerance
from lensdist.config import load
from lensdist.config.schema import BaseRun, SuperResolutionRun, schema_of
from lensdist.data.dataset import PackedSet
from lensdist.engine.world import World
from lensdist.errors import UserError
from lensdist.owners import remove, temporary

_STEPS_OF_DATA = 8  # a simulated set is as large as the images of so many steps, but at least
_LEAST = 1024  # images in all

# Without what draws at random or makes much of rounding: for the gates.
_DROPOUT = {
    "mae": ("model.dropout",),
    "finetune": ("model.dropout", "model.head_dropout"),
    "common": ("model.head_dropout",),
    "sr": ("model.encoder.dropout",),
}
# BatchNorm and Adam make much of rounding at the recipe's rate.
_GENTLE = {"common": ("optim.lr=1e-5",)}
STILL = ("optim.schedule.kind=constant", "optim.schedule.warmup_steps=0")
BARE = ("precision=no", "optim.weight_decay=0", "optim.clip_norm=null", "train.micro_batch=auto")
UNTURNED = tuple(f"augment.{way}=false" for way in ("rot180", "rot90", "flip"))


class Session:
    """What all measurements of one command share.

    Args:
        bench: what was asked for.

    Raises:
        UserError: the configuration, the data or the launcher's settings are wrong.
    """

    def __init__(self, bench: SpeedBench) -> None:
        self.bench = bench
        self.scratch = temporary(bench.out / "scratch")  # which is deleted: no name of the user's
        self.cfg = self.load()
        self.world = World(self.cfg)
        self.scratch = self.world.from_main(self.scratch)
        self.cfg = self.load()
        self.device = self.world.device
        cuda = self.device.type == "cuda"
        self.skip = 10 if cuda else 3  # during the second step, room is made for checkpoints
        self.steps = bench.window_steps or (50 if cuda else 4)
        self.packed, self.larger = self._images()

    def load(self, *more: str) -> BaseRun:
        """The configuration with settings changed."""
        words = [*self.bench.overrides, f"run.dir={self.scratch / 'run'}", *more]
        return load(self.bench.config, words, schema=schema_of)

    @property
    def rounding(self) -> Tolerance:
        """What rounding alone may make of the losses of `still`."""
        return BATCHNORM if self.cfg.task == "common" else ROUNDING

    def ours(self, *more: str) -> Ours:
        """A run with settings changed."""
        saves = any(word.startswith("checkpoint.every_steps=") for word in more)
        return Ours(self.load(*more), self.packed, saves=saves)

    def still(self, *more: str) -> Ours:
        """The same without dropout and schedule: its losses can be held against others'."""
        none = (f"{name}=0" for name in _DROPOUT[self.cfg.task])
        return self.ours(*STILL, *none, *_GENTLE.get(self.cfg.task, ()), *more)

    def clean(self) -> None:
        """Delete what the runs have left."""
        if self.world.main:  # the others write nothing
            remove(self.scratch)

    def _images(self) -> tuple[PackedSet, float]:
        """The set, and how many times as large the run's own is: simulated ones are small here."""
        cfg = self.cfg.data
        if cfg.path is not None:
            return PackedSet(cfg.path), 1.0
        assert cfg.sim is not None  # the configuration has checked
        wanted = max(_LEAST, _STEPS_OF_DATA * self.cfg.train.global_batch)
        # A tenth each is for validation and test, and a run may want one class alone.
        n = min(cfg.n_per_class, -(-wanted * 10 // 8))
        if cfg.labels_per_class is not None:
            n = cfg.n_per_class
        pairs = isinstance(self.cfg, SuperResolutionRun) and cfg.sim.family == "sr"
        place = self.bench.out / "data"
        if self.world.main:
            simulated_set(place, cfg.sim, n, self.cfg.seed, truth=pairs)
        self.world.barrier()
        if not place.exists():
            raise UserError(f"{place} is not there: all nodes must see the same --out")
        return PackedSet(place), cfg.n_per_class / n
