"""What else one would train a run with, on its images, from its weights."""

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

from benchmarks.harness.turns import Way
from benchmarks.rivals import ensembles, loops, resolvers, vit
from benchmarks.rivals.items import Array, Files, Item, Memory
from benchmarks.rivals.loops import Batch, Loop, Loss, Make
from benchmarks.speed.ours import Ours
from lensdist import rng
from lensdist.config.schema import (
    BaseRun,
    ClassifierRun,
    CommonRun,
    FinetuneRun,
    MaeRun,
    SuperResolutionRun,
)
from lensdist.models.masking import make_mask

_NO_TIMM = (
    "timm is not on Python's path: pip install --no-deps --target .venv/rivals 'timm>=1.0', and "
    "put PYTHONPATH=.venv/rivals before the command"
)
_NO_LIGHTNING = "Lightning is not installed: pip install 'lensdist[bench]'"


@dataclass
class Rivals:
    """A run's rivals.

    Args:
        ours: the run.
        folder: for files of single images; what is there already is used again.
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
    """Name -> why, and what to do about it."""

    def add(
        self, name: str, loop: Loop, make: Make, batches: Iterable[Batch], loss: Loss, **how: Any
    ) -> None:
        """A rival with the run's optimizer, or with `adam`."""
        adam = how.pop("adam", self.adam)
        batch = self.ours.cfg.train.global_batch
        self.ways[name] = Way(loops.turn_of(loop, make, batches, loss, adam, **how), batch)

    def adam(self, net: nn.Module) -> torch.optim.Optimizer:
        """torch's own default of it."""
        how = self.ours.cfg.optim
        kind = torch.optim.Adam if how.name == "adam" else torch.optim.AdamW
        decay, betas = how.weight_decay, how.betas
        return kind(net.parameters(), lr=how.lr, betas=betas, weight_decay=decay)

    def loader(self, images: Dataset[Batch], workers: int = 0) -> DataLoader[Any]:
        """An ordinary one."""
        sampler: Any = SubsetRandomSampler(self.order) if self.shuffle else self.order
        return DataLoader(
            images, self.ours.cfg.train.global_batch, sampler=sampler, drop_last=True,
            num_workers=workers, pin_memory=workers > 0,
        )  # fmt: skip

    def files(self, item: Item) -> DataLoader[Any]:
        """A file an image, no workers: as the notebooks."""
        return self.loader(Files(self.ours.packed, self.folder, self.order, item))

    def array(self, item: Item) -> DataLoader[Any]:
        """The packed array, an image at a time."""
        return self.loader(Array(self.ours.packed, item), self.workers)

    def memory(self, *keys: str) -> Memory:
        """Tensors on the device."""
        run = self.ours
        batch = run.cfg.train.global_batch
        return Memory(run.packed, run.world.device, batch, self.order, self.shuffle, keys)

    def add_frameworks(
        self, timm: Make, plain: Make, batches: Iterable[Batch], loss: Loss, *, channels_last: bool
    ) -> None:
        """timm's loop and Lightning's, or why not."""
        cfg = self.ours.cfg
        how = cfg.optim
        if find_spec("timm") is None:
            self.left_out["timm"] = _NO_TIMM
        else:
            adam = loops.timm_adam(how.name, how.lr, how.weight_decay)
            for last in (False, True) if channels_last else (False,):
                name = "timm --channels-last" if last else "timm"
                loop = loops.timm_loop(cfg.precision, last)
                self.add(name, loop, timm, batches, loss, adam=adam, benchmark=True)
        if find_spec("lightning") is None:
            self.left_out["Lightning"] = _NO_LIGHTNING
        else:
            self.add("Lightning", loops.lightning_loop(cfg.precision), plain, batches, loss)


def fill(rivals: Rivals) -> Rivals:
    """Add what suits the run's task; where nothing does, say why."""
    of_task: dict[type[BaseRun], tuple[Callable[[Rivals, Any], None], Callable[[Any], str]]] = {
        MaeRun: (_mae, lambda cfg: vit.refusal(cfg.model)),
        FinetuneRun: (_finetune, lambda cfg: vit.refusal(cfg.model)),
        CommonRun: (_common, lambda cfg: ensembles.refusal(cfg.model)),
        SuperResolutionRun: (_super_resolution, resolvers.refusal),
    }
    cfg = rivals.ours.cfg
    add, refusal = of_task[type(cfg)]
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
    if isinstance(ours.cfg, ClassifierRun) and ours.cfg.data.classes is not None:
        return "others number classes as the set does: leave data.classes out"
    return ""


def _mae(rivals: Rivals, cfg: MaeRun) -> None:
    """Masks come from lensdist's own function, whose batched form is faster than others have."""
    net, task = rivals.ours.network, rivals.ours.task
    key = rng.key(rng.key(cfg.seed, "draw", 0), "mask")

    def masked(image: Tensor, sample: Tensor) -> Batch:
        seen = task.preprocess(image)
        return seen, make_mask(seen, cfg.model.patch_size, cfg.mask, key, sample)

    def item(sample: dict[str, Tensor]) -> Batch:
        seen, mask = masked(sample["image"][None], sample["sample"][None])
        return seen[0], mask[0]

    def raw(sample: dict[str, Tensor]) -> Batch:
        return sample["image"], sample["sample"]

    def loss(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        image, mask = batch
        drawn = net(image, mask)
        if cfg.loss == "image":
            return F.mse_loss(drawn, image), drawn
        hidden = vit.pixels(mask, cfg.model.patch_size).expand_as(drawn)
        return (drawn - image).square()[hidden].mean(), drawn

    def batched(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return loss(net, masked(*batch))

    make = partial(vit.build, "torch", net)
    rivals.add("notebook", loops.notebook, make, rivals.files(item), loss)
    plain = loops.plain(cfg.precision)
    memory = rivals.memory("image", "sample")
    rivals.add("plain loop, memory", plain, make, memory, batched, tf32=cfg.precision != "no")
    timm, array = partial(vit.build, "timm", net), rivals.array(raw)
    rivals.add_frameworks(timm, make, array, batched, channels_last=False)


def _finetune(rivals: Rivals, cfg: FinetuneRun) -> None:
    net, scale = rivals.ours.network, rivals.ours.task.preprocess

    def item(sample: dict[str, Tensor]) -> Batch:
        return scale(sample["image"][None])[0], sample["label"]

    def raw(sample: dict[str, Tensor]) -> Batch:
        return sample["image"], sample["label"]

    def batched(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return ensembles.loss(net, (scale(batch[0]), batch[1]))

    make = partial(vit.build, "torch", net)
    rivals.add("notebook", loops.notebook, make, rivals.files(item), ensembles.loss)
    plain, memory = loops.plain(cfg.precision), rivals.memory("image", "label")
    rivals.add("plain loop, memory", plain, make, memory, batched, tf32=cfg.precision != "no")
    timm, array = partial(vit.build, "timm", net), rivals.array(raw)
    rivals.add_frameworks(timm, make, array, batched, channels_last=False)


def _common(rivals: Rivals, cfg: CommonRun) -> None:
    pixels, grey3 = cfg.model.resize, cfg.model.grey == "repeat" and cfg.model.in_channels == 1
    item = ensembles.item(pixels, mirror=cfg.augment.flip, grey3=grey3)
    classes = len(rivals.ours.task.labels)
    weights = rivals.ours.network.state_dict()
    make = partial(ensembles.build, "torchvision", cfg.model, classes, weights)
    rivals.add("notebook", loops.notebook, make, rivals.files(item), ensembles.loss)
    timm = partial(ensembles.build, "timm", cfg.model, classes, weights)
    array = rivals.array(item)
    rivals.add_frameworks(timm, make, array, ensembles.loss, channels_last=True)


def _super_resolution(rivals: Rivals, cfg: SuperResolutionRun) -> None:
    make, loss = partial(deepcopy, rivals.ours.network), resolvers.resolver_loss(cfg)
    plain = loops.plain(cfg.precision)
    how = {"benchmark": True, "tf32": cfg.precision != "no"}
    files = rivals.files(resolvers.turned_item(cfg.augment))
    rivals.add("plain loop, files", plain, make, files, loss, **how)
    batched, memory = resolvers.turned_batch(loss, cfg.augment), rivals.memory("image", "target")
    rivals.add("plain loop, memory", plain, make, memory, batched, **how)
    if find_spec("lightning") is None:
        rivals.left_out["Lightning"] = _NO_LIGHTNING
    else:
        rivals.add("Lightning", loops.lightning_loop(cfg.precision), make, files, loss)
