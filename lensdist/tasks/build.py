"""From a configuration to its task."""

from __future__ import annotations

from torch import Tensor

from lensdist.config.schema import BaseRun, FinetuneRun, MaeRun
from lensdist.data.preprocess import Preprocess
from lensdist.errors import UserError
from lensdist.tasks.base import Task
from lensdist.tasks.finetune import FinetuneTask
from lensdist.tasks.mae import MaeTask


def build_task(
    cfg: BaseRun,
    labels: tuple[str, ...],
    preprocess: Preprocess,
    encoder: dict[str, Tensor] | None = None,
) -> Task:
    """The task of a configuration.

    Raises:
        UserError: a classifier without at least two classes to tell apart.
    """
    if isinstance(cfg, MaeRun):
        return MaeTask(cfg, labels, preprocess)
    assert isinstance(cfg, FinetuneRun)
    if len(labels) < 2:
        raise UserError(
            f"task finetune: the data has {len(labels)} classes; pack a set with two or more"
        )
    return FinetuneTask(cfg, labels, preprocess, encoder)
