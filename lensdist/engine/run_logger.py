"""What a run says of itself: rows to metrics.jsonl, copies to trackers, a line to people.

Only the main process says anything; on the others every method does nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from lensdist.config.schema import BaseRun
from lensdist.engine.batches import StepPlan
from lensdist.engine.world import World
from lensdist.tracking.metrics_log import MetricsLog, rewind
from lensdist.tracking.progress import Progress
from lensdist.tracking.trackers import Trackers


class RunLogger:
    """The voice of a run.

    Args:
        cfg: the run's configuration.
        world: the processes; only the main one speaks.
        step: where the run starts: rows after it, of a life that was lost, are dropped.
    """

    def __init__(self, cfg: BaseRun, world: World, step: int) -> None:
        self._speaks = world.main
        if not self._speaks:
            return
        self._world = world
        self._cfg = cfg
        path = cfg.run.dir / "metrics.jsonl"
        rewind(path, step)
        self._log = MetricsLog(path)
        self._trackers = Trackers(
            cfg.run.dir,
            cfg.track.wandb,
            cfg.track.project,
            cfg.track.tensorboard,
            cfg.model_dump(mode="json"),
            resumed_step=step or None,
        )
        self._progress: Progress | None = None

    def begin(
        self, total: int, step: int, plan: StepPlan, parameters: int, depends: str = ""
    ) -> None:
        """Announce the arithmetic of the run before its first step, and what it depends on."""
        if not self._speaks:
            return
        self._images = plan.count * plan.micro_batch
        self._steps_per_epoch = plan.steps_per_epoch
        self._progress = Progress(total, step=step, images=step * self._images)
        self._progress.note(
            f"{self._cfg.task}/{self._cfg.preset}: {parameters:,} parameters, {total} steps of "
            f"{self._images} images = {plan.count} micro-batches of {plan.micro_batch} on "
            f"{self._world.size} process(es), {plan.steps_per_epoch} steps an epoch, "
            f"{self._world.device.type}, precision {self._cfg.precision}, "
            f"engine {self._world.engine}"
        )
        if depends:
            self._progress.note(depends)

    def train(self, step: int, loss: float, rate: float) -> None:
        """At a log interval."""
        if not self._speaks:
            return
        assert self._progress is not None
        epoch = step / self._steps_per_epoch
        self._progress.update(step, step * self._images, epoch=epoch, loss=loss, lr=rate)
        speed = self._progress.images_per_s
        self._row(step, "train", loss=loss, lr=rate, epoch=epoch, images_per_s=speed)

    def scores(self, step: int, scores: dict[str, Any], improved: bool, seconds: float) -> None:
        """After an evaluation on the validation split."""
        if not self._speaks:
            return
        flat = {k: v for k, v in scores.items() if isinstance(v, int | float) or v is None}
        self._row(step, "val", **flat, best=improved, seconds=seconds)
        if self._progress is not None:
            shown = "  ".join(f"{k} {v:.4g}" for k, v in flat.items() if isinstance(v, float))
            self._progress.note(f"step {step} val: {shown}{'  best so far' if improved else ''}")

    def event(self, step: int, what: str, detail: str) -> None:
        """Something that happened once."""
        if not self._speaks:
            return
        self._row(step, "event", what=what, detail=detail)
        if self._progress is not None:
            self._progress.note(f"step {step}: {what}: {detail}")

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What happens inside is not training, and does not count in its images a second."""
        paused = self._progress.paused() if self._speaks and self._progress else None
        with paused or contextlib.nullcontext():
            yield

    def sync(self) -> None:
        """Where a checkpoint is saved: the rows up to it are on the disk too."""
        if self._speaks:
            self._log.sync()

    def close(self) -> None:
        """Say no more."""
        if self._speaks:
            if self._progress is not None:
                self._progress.close()
            self._log.close()
            self._trackers.close()

    def _row(self, step: int, kind: str, **values: Any) -> None:
        self._trackers.log(self._log.append(step, kind, **values))
