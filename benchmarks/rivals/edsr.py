"""Other ways to train on pairs: plain PyTorch, over files and over tensors in memory, and EDSR.

None reads its loss at a step, averages weights, clips gradients or warms up, which flatters them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rivals.ensembles import Batch, Turn, Watch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler

from lensdist.config.schema import SuperResolutionRun
from lensdist.data.config import AugmentConfig
from lensdist.data.packed import PackedSet
from lensdist.data.preprocess import turn, views

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Files(Dataset[Batch]):
    """LR and HR of a packed set's pairs by number, each from its two files, as the notebook does.

    Args:
        raw: the folder of `LR/` and `HR/` that the set was packed from.
        packed: the set.
        augment: how pairs are turned and mirrored at random.
    """

    def __init__(self, raw: Path, packed: Path, augment: AugmentConfig) -> None:
        rows = (packed / "files.jsonl").read_text().splitlines()
        self.raw, self.names = raw, [Path(json.loads(row)["name"]).name for row in rows]
        self.ways = views(augment)

    def __getitem__(self, i: int) -> Batch:
        way = self.ways[int(torch.randint(len(self.ways), ()))]
        low, high = (
            torch.from_numpy(np.load(self.raw / side / self.names[i]).astype(np.float32))
            for side in ("LR", "HR")
        )
        return turn(low, way), turn(high, way)


class Memory:
    """LR and HR of a packed set in the device's memory; a batch is turned as one, which is cheap.

    Args:
        packed: the set.
        device: where it is kept.
        batch: pairs at a time.
        rows: the pairs, by number.
        shuffle: whether each epoch has an order of its own.
        augment: how batches are turned and mirrored at random.
    """

    def __init__(
        self, packed: Path, device: torch.device, batch: int, rows: Sequence[int], shuffle: bool,
        augment: AugmentConfig,
    ) -> None:  # fmt: skip
        pairs = PackedSet(packed).gather(np.asarray(rows))
        self.lr, self.hr = pairs["image"].to(device), pairs["target"].to(device)
        self.batch, self.shuffle, self.ways = batch, shuffle, views(augment)

    def __iter__(self) -> Iterator[Batch]:
        n = len(self.lr)
        order = torch.randperm(n) if self.shuffle else torch.arange(n)
        for rows in torch.split(order.to(self.lr.device), self.batch):
            if len(rows) == self.batch:
                way = self.ways[int(torch.randint(len(self.ways), ()))]
                yield turn(self.lr[rows], way), turn(self.hr[rows], way)


def resolver_loss(cfg: SuperResolutionRun) -> Loss:
    """The loss of a `SuperResolver`, written out: of what LR's minimum and range scale."""

    def loss(net: nn.Module, lr: Tensor, hr: Tensor) -> Tensor:
        low, high = lr.amin((1, 2, 3), keepdim=True), lr.amax((1, 2, 3), keepdim=True)
        lr, hr = (lr - low) / (high - low), (hr - low) / (high - low)
        drawn: Tensor = net(lr)
        image, ln_sigma = drawn.chunk(2, 1) if cfg.model.sigma else (drawn, None)
        square = (image - hr) ** 2
        value: Tensor = square.mean()
        if cfg.loss == "poisson":
            around = F.avg_pool2d(lr, 3, 1, 1, count_include_pad=False)
            value = 1000 * (square / (F.interpolate(around, hr.shape[-2:]) + cfg.floor)).mean()
        if ln_sigma is not None:
            pull = (image.detach() - hr) * torch.exp(-ln_sigma)
            value = value + (pull**2 / 2 + ln_sigma).mean() + math.log(2 * math.pi) / 2
        return value

    return loss


def edsr_loss(net: nn.Module, lr: Tensor, hr: Tensor) -> Tensor:
    """Of images as they are, as in the paper."""
    return F.l1_loss(net(lr), hr)


def plain(
    build: Callable[[], nn.Module], loss: Loss, batches: Iterable[Batch], precision: str,
    rate: float = 1e-4, betas: tuple[float, float] = (0.9, 0.999),
) -> Turn:  # fmt: skip
    """The loop that one writes by hand, beginning anew each time."""

    def turn_(watch: Watch) -> None:
        torch.use_deterministic_algorithms(False)  # lensdist's settings are lensdist's
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("highest" if precision == "no" else "high")
        net = build().to(watch.device).train()
        optimizer = torch.optim.Adam(net.parameters(), lr=rate, betas=betas)
        for lr, hr in watch.over(batches):
            lr, hr = lr.to(watch.device), hr.to(watch.device)
            optimizer.zero_grad()
            with torch.autocast(watch.device.type, torch.bfloat16, precision == "bf16"):
                value = loss(net, lr, hr)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            watch.losses.append(value.detach())

    return turn_


def turns(
    cfg: SuperResolutionRun, build: Callable[[], nn.Module], edsr: Callable[[], nn.Module],
    scratch: Path, device: torch.device, rows: Sequence[int], shuffle: bool,
) -> dict[str, Turn]:  # fmt: skip
    """Each plain loop by its name.

    Args:
        cfg: the run whose network, loss, rate, batch and turns `files` and `memory` have.
        build: makes that network.
        edsr: makes EDSR, which trains at the paper's rate.
        scratch: holds the pairs as files, `raw`, and the set that they were packed into, `packed`.
        device: where to train.
        rows: the pairs, by number.
        shuffle: whether they come in random order.
    """
    batch, packed, precision = cfg.train.global_batch, scratch / "packed", cfg.precision
    sampler: Any = SubsetRandomSampler(rows) if shuffle else rows
    pairs = Files(scratch / "raw", packed, cfg.augment)
    files = DataLoader(pairs, batch, sampler=sampler, drop_last=True)
    memory = Memory(packed, device, batch, rows, shuffle, cfg.augment)
    loss, how = resolver_loss(cfg), (precision, cfg.optim.lr, cfg.optim.betas)
    return {
        "files": plain(build, loss, files, *how),
        "memory": plain(build, loss, memory, *how),
        "EDSR, memory": plain(edsr, edsr_loss, memory, precision),
    }
