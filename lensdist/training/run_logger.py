"""Record a run: rows of metrics.jsonl, copies to trackers, messages and progress.

Only the main process records; on the others every method does nothing.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from lensdist.distributed.config import TrackConfig
from lensdist.distributed.micro_batches import StepPlan
from lensdist.tracking.metrics_log import MetricsLog, rewind
from lensdist.tracking.progress import Progress
from lensdist.tracking.trackers import Trackers

log = logging.getLogger(__name__)


class RunLogger:
    """The record of a run's numbers, on disk and on screen.

    Attributes:
        peak_images_per_s: the speed at the devices' peak arithmetic, for `mfu`; None if unknown.

    Args:
        folder: of the run.
        track: which trackers get copies.
        config: the run's settings, which trackers show.
        device: whose memory is reported.
        step: the step that the run starts from. Later rows, of an earlier process, are dropped.
        enabled: whether this is the main process.
    """

    def __init__(
        self,
        folder: Path,
        track: TrackConfig,
        config: Mapping[str, Any],
        device: torch.device,
        step: int,
        *,
        enabled: bool,
    ) -> None:
        self.peak_images_per_s: float | None = None
        self._enabled, self._device = enabled, device
        self._progress: Progress | None = None
        if not enabled:
            return
        path = folder / "metrics.jsonl"
        rewind(path, step)
        self._log = MetricsLog(path)
        self._trackers = Trackers(
            folder,
            track.wandb,
            track.project,
            track.tensorboard,
            config,
            resumed_step=step or None,
        )

    def begin(self, total: int, step: int, plan: StepPlan) -> None:
        """Start to measure time, just before the first step.

        Args:
            total: steps of the whole run.
            step: steps done.
            plan: the micro-batches of a step.
        """
        if self._enabled:
            self._images = plan.count * plan.micro_batch
            self._steps_per_epoch = plan.steps_per_epoch
            self._progress = Progress(total, step=step, images=step * self._images)

    def train(
        self,
        step: int,
        *,
        loss: float,
        lr: float,
        grad_norm: torch.Tensor | float | None,
        waited: float,
    ) -> None:
        """Record a log interval.

        Args:
            step: steps done.
            loss: the interval's mean.
            lr: learning rate of its last step.
            grad_norm: norm of the whole gradient at its last step, before clipping.
            waited: seconds of the interval spent on fetching batches.
        """
        if not self._enabled:
            return
        assert self._progress is not None
        seconds = self._progress.mark(step, step * self._images)
        speed, peak = self._progress.images_per_s, self.peak_images_per_s
        figures: dict[str, float | None] = {
            "loss": loss,
            "lr": lr,
            "epoch": step / self._steps_per_epoch,
            "images_per_s": speed,
            "grad_norm": None if grad_norm is None else float(grad_norm),
            "data_wait": waited / seconds if seconds > 0 else None,
        }
        if speed is not None and peak is not None:
            figures["mfu"] = speed / peak
        if self._device.type == "cuda":
            figures["memory_gb"] = torch.cuda.max_memory_allocated(self._device) / 1e9
        self._row(step, "train", **figures)
        self._progress.show(figures)

    def scores(self, step: int, scores: dict[str, Any], improved: bool, seconds: float) -> None:
        """Record an evaluation on the validation split."""
        if not self._enabled:
            return
        flat = {k: v for k, v in scores.items() if isinstance(v, int | float) or v is None}
        self._row(step, "val", **flat, best=improved, seconds=seconds)
        shown = "  ".join(f"{k} {v:.4g}" for k, v in flat.items() if isinstance(v, float))
        log.info("step %d val: %s%s", step, shown, "  best so far" if improved else "")

    def event(self, step: int, what: str, detail: str, level: int = logging.INFO) -> None:
        """Record something that happened once.

        Args:
            step: steps done.
            what: a few words.
            detail: the rest of the message.
            level: of the message.
        """
        if self._enabled:
            self._row(step, "event", what=what, detail=detail)
            log.log(level, "step %d: %s: %s", step, what, detail)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Exclude the time inside, which is not training, from the images per second."""
        with self._progress.paused() if self._progress else contextlib.nullcontext():
            yield

    def sync(self) -> None:
        """Wait until the rows are on the disk; called when a checkpoint is saved."""
        if self._enabled:
            self._log.sync()

    def close(self) -> None:
        """Close the file, the trackers and the display."""
        if self._enabled:
            if self._progress is not None:
                self._progress.close()
            self._log.close()
            self._trackers.close()

    def _row(self, step: int, kind: str, **values: Any) -> None:
        self._trackers.log(self._log.append(step, kind, **values))
