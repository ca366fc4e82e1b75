"""Build the rivals of a run, by task: other networks and loops on its images, from its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler

from benchmarks.harness.ours import Ours
from benchmarks.harness.turns import Way
from benchmarks.rivals import ensembles, loops, resolvers, vit
from benchmarks.rivals.items import Array, Files, Item, Memory
from benchmarks.rivals.loops import Batch, Loop, Loss, Make
from lensdist.models.masking import make_mask
from lensdist.utils import rng

_NO_TIMM = (
    "timm is not on Python's path: pip install --no-deps --target .venv/rivals 'timm>=1.0', and "
    "put PYTHONPATH=.venv/rivals before the command"
)
_NO_LIGHTNING = "Lightning is not installed: pip install 'lensdist[bench]'"


@dataclass
class Rivals:
    """The rivals of a run.

    Args:
        ours: the run.
        folder: for files of single images; existing ones are used again.
        order: rows of the packed set to train on.
        shuffle: whether each epoch draws an order of its own.
        workers: of the loaders of timm and Lightning.
    """

    ours: Ours
    folder: Path
    order: Sequence[int]
    shuffle: bool
    workers: int = 0
    ways: dict[str, Way] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    """Name -> reason, and what to do about it."""

    def add(
        self, name: str, loop: Loop, make: Make, batches: Iterable[Batch], loss: Loss, **how: Any
    ) -> None:
        """Add a rival with the run's optimizer, or with `adam`."""
        adam = how.pop("adam", self.adam)
        batch = self.ours.cfg.train.global_batch
        self.ways[name] = Way(loops.turn_of(loop, make, batches, loss, adam, **how), batch)

    def adam(self, net: nn.Module) -> torch.optim.Optimizer:
        """Return torch's own form of the run's optimizer."""
        how = self.ours.cfg.optim
        kind = torch.optim.Adam if how.name == "adam" else torch.optim.AdamW
        decay, betas = how.weight_decay, how.betas
        return kind(net.parameters(), lr=how.lr, betas=betas, weight_decay=decay)

    def loader(self, images: Dataset[Batch], workers: int = 0) -> DataLoader[Any]:
        """Return an ordinary loader."""
        sampler: Any = SubsetRandomSampler(self.order) if self.shuffle else self.order
        return DataLoader(
            images, self.ours.cfg.train.global_batch, sampler=sampler, drop_last=True,
            num_workers=workers, pin_memory=workers > 0,
        )  # fmt: skip

    def files(self, item: Item) -> DataLoader[Any]:
        """Return a loader of one file per image without workers, as the notebooks'."""
        return self.loader(Files(self.ours.packed, self.folder, self.order, item))

    def array(self, item: Item) -> DataLoader[Any]:
        """Return a loader of the packed array, an image at a time."""
        return self.loader(Array(self.ours.packed, item), self.workers)

    def memory(self, *keys: str) -> Memory:
        """Return batches of tensors on the device."""
        run = self.ours
        batch = run.cfg.train.global_batch
        return Memory(run.packed, run.world.device, batch, self.order, self.shuffle, keys)

    def add_timm(
        self, make: Make, batches: Iterable[Batch], loss: Loss, *, channels_last: bool = False
    ) -> None:
        """Add timm's loop, or the reason why not."""
        cfg = self.ours.cfg
        if find_spec("timm") is None:
            self.left_out["timm"] = _NO_TIMM
            return
        name = "timm --channels-last" if channels_last else "timm"
        adam = loops.timm_adam(cfg.optim.name, cfg.optim.lr, cfg.optim.weight_decay)
        loop = loops.timm_loop(cfg.precision, channels_last)
        self.add(name, loop, make, batches, loss, adam=adam, benchmark=True)

    def add_lightning(self, make: Make, batches: Iterable[Batch], loss: Loss) -> None:
        """Add Lightning's loop, or the reason why not."""
        if find_spec("lightning") is None:
            self.left_out["Lightning"] = _NO_LIGHTNING
        else:
            loop = loops.lightning_loop(self.ours.cfg.precision)
            self.add("Lightning", loop, make, batches, loss)


Add = Callable[[Rivals, Any], None]
Refusal = Callable[[Any], str]


def fill(rivals: Rivals) -> Rivals:
    """Add the rivals of the run's task, or the reason why there are none."""
    cfg = rivals.ours.cfg
    if cfg.task not in OF_TASK:
        rivals.left_out["others"] = f"task {cfg.task} has no rivals"
        return rivals
    add, refusal = OF_TASK[cfg.task]
    why = refusal(cfg) or _refusal(rivals.ours)
    if why:
        rivals.left_out["others"] = why
    else:
        add(rivals, cfg)
    return rivals


def _refusal(ours: Ours) -> str:
    if not ours.whole:
        return "others train all layers from the first step: give encoder=null or unfreeze=all"
    if ours.cfg.data.source == "stream":
        return "others read images from a set: give data.source=packed"
    if ours.cfg.task != "mae" and ours.cfg.data.classes is not None:
        return "others number classes as the set does: leave data.classes out"
    return ""


def _mae(rivals: Rivals, cfg: Any) -> None:
    """Add the MAE's rivals, with masks from lensdist's own, faster function."""
    task = rivals.ours.task
    key = rng.key(rng.key(cfg.seed, "draw", 0), "mask")

    def masked(batch: Batch) -> Batch:
        seen = task.preprocess(batch[0])
        return seen, make_mask(seen, cfg.model.patch_size, cfg.mask, key, batch[1])

    def loss(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        image, mask = batch
        drawn = net(image, mask)
        if cfg.loss == "image":
            return F.mse_loss(drawn, image), drawn
        hidden = vit.pixels(mask, cfg.model.patch_size).expand_as(drawn)
        return (drawn - image).square()[hidden].mean(), drawn

    _transformers(rivals, masked, loss, "sample")


def _finetune(rivals: Rivals, cfg: Any) -> None:
    scale = rivals.ours.task.preprocess
    _transformers(rivals, lambda batch: (scale(batch[0]), batch[1]), ensembles.loss, "label")


def _transformers(
    rivals: Rivals, prepare: Callable[[Batch], Batch], loss: Loss, second: str
) -> None:
    """Add the ways to train a vision transformer.

    Args:
        rivals: to add to.
        prepare: maps a batch of images and a second tensor to the loss's input; a notebook applies
            it to one image at a time, the others to a batch.
        loss: of a prepared batch.
        second: the key of the second tensor.
    """
    net, precision = rivals.ours.network, rivals.ours.cfg.precision

    def raw(sample: dict[str, Tensor]) -> Batch:
        return sample["image"], sample[second]

    def item(sample: dict[str, Tensor]) -> Batch:
        made = prepare(tuple(part[None] for part in raw(sample)))
        return tuple(part[0] for part in made)

    def batched(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return loss(net, prepare(batch))

    make = partial(vit.build, "torch", net)
    rivals.add("notebook", loops.notebook(), make, rivals.files(item), loss)
    plain, memory = loops.by_hand(precision), rivals.memory("image", second)
    rivals.add("plain loop, memory", plain, make, memory, batched, tf32=precision != "no")
    timm, array = partial(vit.build, "timm", net), rivals.array(raw)
    rivals.add_timm(timm, array, batched)
    rivals.add_lightning(make, array, batched)


def _common(rivals: Rivals, cfg: Any) -> None:
    pixels, grey3 = cfg.model.resize, cfg.model.grey == "repeat" and cfg.model.in_channels == 1
    item = ensembles.item(pixels, mirror=cfg.augment.flip, grey3=grey3)
    classes = len(rivals.ours.task.labels)
    weights = rivals.ours.network.state_dict()
    make = partial(ensembles.build, "torchvision", cfg.model, classes, weights)
    rivals.add("notebook", loops.notebook(), make, rivals.files(item), ensembles.loss)
    timm = partial(ensembles.build, "timm", cfg.model, classes, weights)
    array = rivals.array(item)
    rivals.add_timm(timm, array, ensembles.loss)
    rivals.add_timm(timm, array, ensembles.loss, channels_last=True)
    rivals.add_lightning(make, array, ensembles.loss)


def _super_resolution(rivals: Rivals, cfg: Any) -> None:
    make, loss = partial(deepcopy, rivals.ours.network), resolvers.resolver_loss(cfg)
    plain = loops.by_hand(cfg.precision)
    how = {"benchmark": True, "tf32": cfg.precision != "no"}
    files = rivals.files(resolvers.turned_item(cfg.augment))
    rivals.add("plain loop, files", plain, make, files, loss, **how)
    batched, memory = resolvers.turned_batch(loss, cfg.augment), rivals.memory("image", "target")
    rivals.add("plain loop, memory", plain, make, memory, batched, **how)
    rivals.add_lightning(make, files, loss)


OF_TASK: dict[str, tuple[Add, Refusal]] = {
    "mae": (_mae, lambda cfg: vit.refusal(cfg.model)),
    "finetune": (_finetune, lambda cfg: vit.refusal(cfg.model)),
    "common": (_common, lambda cfg: ensembles.refusal(cfg.model)),
    "sr": (_super_resolution, resolvers.refusal),
}
"""Task -> a function that adds its rivals, and one that returns why a configuration has none."""
