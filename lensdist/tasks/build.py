"""From a configuration to its task."""

from __future__ import annotations

from torch import Tensor

from lensdist.config.schema import BaseRun, CommonRun, FinetuneRun, MaeRun, SuperResolutionRun
from lensdist.data.transforms import Preprocess
from lensdist.errors import UserError
from lensdist.tasks.base import Task
from lensdist.tasks.common import CommonTask
from lensdist.tasks.finetune import FinetuneTask
from lensdist.tasks.mae import MaeTask
from lensdist.tasks.super_resolution import SuperResolutionTask


def build_task(
    cfg: BaseRun,
    labels: tuple[str, ...],
    preprocess: Preprocess,
    weights: dict[str, Tensor] | None = None,
    *,
    thorough: bool = False,
) -> Task:
    """The task of a configuration; `weights` are those that it starts from.

    `thorough`: also score what takes too long to look at while training.

    Raises:
        UserError: a classifier without at least two classes to tell apart.
    """
    if isinstance(cfg, MaeRun):
        return MaeTask(cfg, labels, preprocess)
    if isinstance(cfg, SuperResolutionRun):
        return SuperResolutionTask(cfg, labels, preprocess, weights, thorough=thorough)
    if len(labels) < 2:
        raise UserError(
            f"task {cfg.task}: the data has {len(labels)} classes; pack a set with two or more"
        )
    if isinstance(cfg, CommonRun):
        return CommonTask(cfg, labels, preprocess, weights)
    assert isinstance(cfg, FinetuneRun)
    return FinetuneTask(cfg, labels, preprocess, weights)
