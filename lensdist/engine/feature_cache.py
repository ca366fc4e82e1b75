"""What the frozen part of a network makes of every training image, computed once a stage.

While layers are frozen and in eval mode, what they make of an image depends on the image and on how
it is turned alone, and augmentation turns images in a few ways only. So it is computed at the
beginning of a stage, in a fixed order and in fixed batches: a resumed run, and any number of
processes, get the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lensdist import rng
from lensdist.config.schema import BaseRun
from lensdist.data.preprocess import Turn, turned, views
from lensdist.data.source import Batch, PackedSource, Source
from lensdist.engine.world import World
from lensdist.tasks.base import Splittable


class CachedSource:
    """A source whose images are replaced by `features.0`, `features.1`, …: see `cached`."""

    def __init__(
        self, task: Splittable, source: PackedSource, seed: int, rest: Batch, table: list[Tensor]
    ) -> None:
        self.size = source.size
        self._task, self._source, self._seed = task, source, seed
        self._rest, self._table = rest, table

    def take(self, epoch: int, offset: int, n: int) -> Batch:
        """As `Source.take`, without images."""
        places = torch.from_numpy(self._source.places(epoch, offset, n))
        places = places.to(self._rest["sample"].device, non_blocking=True)
        batch = {name: value[places] for name, value in self._rest.items()}
        view = self._task.view(batch["sample"], rng.key(self._seed, "draw", epoch))
        for i, features in enumerate(self._table):  # (views, images, …)
            batch[f"features.{i}"] = features[view, places]
        return batch


def cached(
    task: Splittable, trunk: nn.Module, source: Source, epochs: int, cfg: BaseRun, world: World
) -> tuple[Source, str]:
    """The source with the trunk's outputs for images, where that is worth it and fits.

    Args:
        task: whose network it is.
        trunk: the frozen part, in eval mode, on the run's device.
        source: what the stage trains on.
        epochs: of the stage.
        cfg: the run's configuration; `cache.max_gb` bounds the memory.
        world: the processes, which share the work.

    Returns:
        The source to train on, and what was decided, in words; empty where there was no choice.
    """
    if not isinstance(source, PackedSource) or cfg.cache.max_gb == 0:
        return source, ""  # a stream never shows an image twice
    ways = views(cfg.augment)
    if epochs <= len(ways):
        return source, (
            f"not cached: {epochs} epoch(s) see no more than the {len(ways)} views of each image"
        )
    work = _Work(task, trunk, source, ways, cfg.train.eval_batch, world)
    one = work.features(source.view.gather(np.zeros(1, np.int64)), ways[0])
    size = source.size * len(ways) * sum(t.nbytes for t in one) / 1e9
    if size > cfg.cache.max_gb:
        return source, f"not cached: {size:.2f} GB is more than cache.max_gb {cfg.cache.max_gb}"
    rest, table = work.do(one)
    return CachedSource(task, source, cfg.seed, rest, table), (
        f"cached: {size:.2f} GB, {len(ways)} view(s) of {source.size} images"
    )


@dataclass(frozen=True)
class _Work:
    task: Splittable
    trunk: nn.Module
    source: PackedSource
    ways: tuple[Turn, ...]
    batch: int
    world: World

    @torch.no_grad()
    def features(self, images: Batch, way: Turn) -> tuple[Tensor, ...]:
        with self.world.accelerator.autocast():
            return tuple(self.trunk(self.task.image(turned(images, way))))

    def do(self, like: tuple[Tensor, ...]) -> tuple[Batch, list[Tensor]]:
        """What of the batches is no image, by name (images, …), and the features, one tensor for
        each of `like`'s (views, images, …)."""
        n = self.source.size
        table = [t.new_empty(len(self.ways), n, *t.shape[1:]) for t in like]
        rest: Batch = {}
        for start in range(0, n, self.batch * self.world.size):
            mine = start + self.world.rank * self.batch
            # Every batch is full and every process has one: short ones repeat the last image.
            places = np.minimum(np.arange(mine, mine + self.batch), n - 1)
            images = self.source.view.gather(places)
            count = min(self.batch * self.world.size, n - start)
            for number, way in enumerate(self.ways):
                for whole, part in zip(table, self.features(images, way), strict=True):
                    whole[number, start : start + count] = self._all(part, count)
            for name, value in images.items():
                if value.dim() == 1:
                    whole = rest.setdefault(name, value.new_empty(n))
                    whole[start : start + count] = self._all(value, count)
        return rest, table

    def _all(self, mine: Tensor, count: int) -> Tensor:
        return self.world.gather(mine.contiguous())[:count]
