"""Construction of the task of a run's configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lensdist.tasks.registry import AnyTask, task_class

if TYPE_CHECKING:
    from torch import Tensor

    from lensdist.config.schema import BaseRun
    from lensdist.data.transforms import Preprocess


def build_task(
    cfg: BaseRun,
    labels: tuple[str, ...],
    preprocess: Preprocess,
    weights: dict[str, Tensor] | None = None,
    *,
    thorough: bool = False,
) -> AnyTask:
    """Build the task of a configuration.

    Args:
        cfg: the run's configuration.
        labels: the classes of the data, in order.
        preprocess: from the units on disk to what the network sees.
        weights: the weights to start from.
        thorough: whether to compute scores that take too long during training.
    """
    return task_class(cfg.task)(
        cfg, labels, preprocess, weights, augment=cfg.augment, seed=cfg.seed, thorough=thorough
    )
