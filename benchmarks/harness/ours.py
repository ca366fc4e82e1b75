"""Run lensdist's own loop, repeatedly from the start, with a watch on it.

It does all that a run does at a step: keyed random numbers, the logger, signals and the STOP file,
and one evaluation and one save at the end. Only the intervals of the latter two are moved out of
the windows, because their cost is reported separately.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.harness.instruments import (
    CountingSaver,
    Few,
    Judge,
    JudgingLogger,
    Timed,
    TimedSet,
    TimedStream,
    watched,
)
from benchmarks.harness.turns import Way
from benchmarks.harness.watch import Watch
from lensdist.config.schema import BaseRun
from lensdist.data.dataset import PackedSet
from lensdist.data.sampler import Images
from lensdist.data.subset import View
from lensdist.distributed import speed
from lensdist.distributed.config import strategy_name
from lensdist.distributed.determinism import set_determinism
from lensdist.distributed.micro_batches import plan_steps
from lensdist.export.artifact import read_export
from lensdist.runs.phase import context_of
from lensdist.runs.sizes import check_images
from lensdist.tasks.build import build_task
from lensdist.tasks.registry import task_class
from lensdist.tasks.types import Inputs
from lensdist.training.async_saver import Saver
from lensdist.training.loop import train
from lensdist.training.prepared import PreparedView
from lensdist.training.stages import Phase
from lensdist.training.stopping import Stopper
from lensdist.utils import rng

_NEVER = 1e9  # epochs
_EVALUATED = 8  # images of the evaluation at a turn's end, which is not timed


@dataclass(frozen=True)
class Point:
    """An evaluation during training."""

    step: int
    seconds: float
    """Seconds of training so far, without evaluations and saves."""
    scores: dict[str, Any]


class _Reached(Exception):
    """The end of a run that has reached its score."""


class Ours:
    """A run that can be trained many times.

    Args:
        cfg: of the run; `run.dir` is written to, and its content is overwritten.
        packed: the images.
        network: in place of the one that the task builds; every turn starts with a copy.
        saves: whether `checkpoint.every_steps` holds within windows too.

    Raises:
        UserError: the configuration does not suit the data, the machine or its launcher.
    """

    def __init__(
        self,
        cfg: BaseRun,
        packed: PackedSet,
        *,
        network: nn.Module | None = None,
        saves: bool = False,
    ) -> None:
        self.cfg, self.packed, self.world, self._saves = cfg, packed, context_of(cfg), saves
        strategy = strategy_name(cfg.engine, cfg.shard)
        speed.check(cfg.speed, cfg.train, strategy, self.world.device, self.world.size)
        kind = task_class(cfg.task)
        kind.check_settings(cfg, cfg.preprocess, self.world)
        kind.check_data(cfg, packed, cfg.data)
        check_images(cfg, packed)
        validation = View(packed, "val", cfg.data, cfg.seed, self.world.device)
        labels = tuple(validation.labels)
        start = kind.start(cfg, Inputs(cfg.preprocess, packed, labels, self.world, read_export))
        self.task = build_task(cfg, labels, start.preprocess, start.weights)
        self.source, self.rows = self._source(labels)
        self.validation: Images = self._prepared(validation)
        size, rank = self.world.size, self.world.rank
        self.plan = plan_steps(
            cfg.train.global_batch, cfg.train.micro_batch, self.source.size, rank, size
        )
        torch.manual_seed(rng.key(cfg.seed, "initial weights") % 2**63)
        self.network = self.task.build() if network is None else network

    def _source(self, labels: tuple[str, ...]) -> tuple[Timed, npt.NDArray[np.int64]]:
        """Return the images to train on, and their rows in the packed set."""
        cfg, device = self.cfg, self.world.device
        if cfg.data.source == "stream":
            assert cfg.data.sim is not None  # checked by the configuration
            size = cfg.data.stream_epoch
            stream = TimedStream(cfg.data.sim, size, labels, cfg.seed, device)
            return stream, np.empty(0, np.int64)
        view = View(self.packed, "train", cfg.data, cfg.seed, device)
        return TimedSet(self._prepared(view), cfg.seed), view.rows

    def _prepared(self, view: Images) -> Images:
        """Do the preprocessing that a run does once, once here too."""
        if not self.task.preprocess.slow:
            return view
        return PreparedView(view, self.task.preprocess, self.cfg.train.eval_batch, self.world)

    @property
    def whole(self) -> bool:
        """Whether all of the network trains from the first step to the last."""
        stages = self.task.stages(self.cfg.train.epochs)
        return len(stages) == 1 and all(
            map(stages[0].trains, dict(self.network.named_parameters()))
        )

    @property
    def way(self) -> Way:
        """This run, to compare with others."""
        return Way(self.turn, self.cfg.train.global_batch, len(self.plan.mine))

    def watch(self, skip: int, steps: int, windows: int = 1) -> Watch:
        """Return a watch for the micro-batches that this process computes at a step."""
        return Watch(skip, steps, self.world.device, windows, len(self.plan.mine))

    def turn(self, watch: Watch) -> list[float]:
        """Train until the watch has seen enough, and save; return the seconds of each save's stall.

        The last save is repeated, to separate its cost from that of the first.
        """
        cfg = self._until(watch.last + 1)  # its batch ends the last window
        with self._saver(cfg) as saver:
            self._train(cfg, watch, Few(self.validation, _EVALUATED), saver)
            saver.again(2)
            return saver.stalls

    def learn(
        self, reached: Callable[[dict[str, Any]], bool] = lambda scores: False
    ) -> list[Point]:
        """Train the whole run, with evaluations and saves, until a score is reached.

        Args:
            reached: whether scores on the validation split are good enough.
        """
        watch = self.watch(0, 1)
        points: list[Point] = []

        def judge(step: int, seconds: float, scores: dict[str, Any]) -> None:
            points.append(Point(step, seconds, scores))
            if reached(scores):
                raise _Reached

        with self._saver(self.cfg) as saver, contextlib.suppress(_Reached):
            self._train(self.cfg, watch, self.validation, saver, judge)
        return points

    def _until(self, steps: int) -> BaseRun:
        train_ = {"max_steps": steps, "eval_every_epochs": _NEVER, "early_stop": None}
        every = self.cfg.checkpoint.every_steps if self._saves else None
        saves = {"every_epochs": _NEVER, "every_steps": every}
        return self.cfg.model_copy(
            update={
                "train": self.cfg.train.model_copy(update=train_),
                "checkpoint": self.cfg.checkpoint.model_copy(update=saves),
            }
        )

    @contextlib.contextmanager
    def _saver(self, cfg: BaseRun) -> Iterator[CountingSaver]:
        root, how = cfg.run.dir / "checkpoints", cfg.checkpoint
        saver = CountingSaver(root, how.keep, how.background, lambda step, sentence: None)
        try:
            yield saver
        finally:
            saver.wait()

    def _train(
        self,
        cfg: BaseRun,
        watch: Watch,
        validation: Images,
        saver: Saver,
        judge: Judge | None = None,
    ) -> None:
        # accelerate has one precision at a time: the last one set
        world = context_of(cfg)
        torch.use_deterministic_algorithms(False)  # it does not undo the setting of another way
        set_determinism(
            world.device, deterministic=cfg.train.deterministic, precision=cfg.precision
        )
        self.source.watch = watch
        task = watched(self.task, self.network, watch)
        with contextlib.redirect_stderr(io.StringIO()):
            logger = JudgingLogger(cfg, world, judge)
            try:
                phase = Phase(cfg, task, self.source, validation, self.plan, {})
                train(phase, world, logger, saver, Stopper(cfg.run.dir, world), None)
            finally:
                logger.close()
