"""Compute the outputs of a network's frozen part for every training image, once per stage.

While layers are frozen and in eval mode, their output depends only on the image and on how
augmentation turns it, and there are few such views. They are computed at the start of a stage, in a
fixed order and in fixed batches: a resumed run, and any number of processes, get the same bits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from lensdist.data.augment import turned, views
from lensdist.data.config import AugmentConfig
from lensdist.data.dataset import Batch
from lensdist.data.sampler import PackedSource, Source
from lensdist.distributed.context import DistributedContext
from lensdist.tasks.registry import AnyTask
from lensdist.training.map_dataset import for_every_image
from lensdist.utils import rng


class CachedSource:
    """A source with tensors `features.0`, `features.1`, … in place of images; see `cached`."""

    def __init__(self, task: AnyTask, source: PackedSource, seed: int, whole: Batch) -> None:
        self.size = source.size
        self._task, self._source, self._seed = task, source, seed
        self._whole = whole
        self.name_of = source.name_of

    def take(self, epoch: int, offset: int, n: int) -> Batch:
        """Return a micro-batch as `Source.take` does, without images."""
        places = torch.from_numpy(self._source.places(epoch, offset, n))
        places = places.to(self._whole["sample"].device, non_blocking=True)
        view = self._task.view(self._whole["sample"][places], rng.key(self._seed, "draw", epoch))
        return {
            name: value[places, view] if name.startswith("features.") else value[places]
            for name, value in self._whole.items()
        }


def cached(
    task: AnyTask,
    trunk: nn.Module,
    source: Source,
    epochs: int,
    world: DistributedContext,
    *,
    augment: AugmentConfig,
    seed: int,
    batch: int,
    max_gb: float,
) -> tuple[Source, str]:
    """Return a source of the trunk's outputs, if it saves time and fits in memory.

    Args:
        task: the network's task.
        trunk: the frozen part, in eval mode, on the run's device.
        source: the stage's images.
        epochs: length of the stage.
        world: the processes, which share the work.
        augment: defines the views of an image.
        seed: the run's.
        batch: images at a time.
        max_gb: memory for the outputs, per process; 0: never cache.

    Returns:
        The source to train on, and a sentence that describes the decision; empty if there was no
        choice.
    """
    if not isinstance(source, PackedSource) or max_gb == 0:
        return source, ""  # a stream never shows an image twice
    ways = views(augment)
    if epochs <= len(ways):
        return source, (
            f"not cached: {epochs} epoch(s) do not exceed the {len(ways)} views of each image"
        )

    @torch.no_grad()
    def features(images: Batch) -> Batch:
        with world.accelerator.autocast():
            found = [trunk(task.image(turned(images, way))) for way in ways]
        rest = {name: value for name, value in images.items() if value.dim() == 1}
        stacked = [torch.stack(views_of_one, 1) for views_of_one in zip(*found, strict=True)]
        return {**rest, **{f"features.{i}": value for i, value in enumerate(stacked)}}

    one = features(source.view.gather(np.zeros(1, np.int64)))
    size = source.size * sum(value.nbytes for value in one.values()) / 1e9
    if size > max_gb:
        return source, f"not cached: {size:.2f} GB is more than cache.max_gb {max_gb}"
    whole = for_every_image(source.view, batch, world, features)
    return CachedSource(task, source, seed, whole), (
        f"cached: {size:.2f} GB, {len(ways)} view(s) of {source.size} images"
    )
