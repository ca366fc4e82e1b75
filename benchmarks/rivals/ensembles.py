"""Other ways to train the common task's networks: the notebook's, timm's and Lightning's.

They live below `benchmarks/`, so that `make bench` does not take them for one.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lensdist._torchvision import import_torchvision
from lensdist.config.schema import CommonRun
from lensdist.data.packed import PackedSet
from lensdist.models.backbones import fold, make_head
from lensdist.models.config import EnsembleConfig
from lensdist.models.ensemble import Ensemble

Batch = tuple[Tensor, Tensor]
Loop = Callable[..., None]
Turn = Callable[["Watch"], None]


class Watch:
    """Knows when a step begins; times those that count, and keeps all losses."""

    def __init__(self, skip: int, steps: int, device: torch.device) -> None:
        self.skip, self.last, self.device = skip, skip + steps, device
        self.losses: list[Tensor] = []
        self.seconds = 0.0
        self._seen, self._start = 0, 0.0

    def begin(self) -> None:
        """A batch is there. That of the step after the last ends the time."""
        if self._seen in (self.skip, self.last):
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            self.seconds, self._start = now - self._start, now
        self._seen += 1

    def over(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The loader's batches, again and again, until there were enough."""
        for batch in chain.from_iterable(repeat(loader)):
            self.begin()
            if self._seen > self.last:
                return
            yield batch


class Images(Dataset[tuple[Tensor, int]]):
    """Images of a packed set by number, one by one.

    Args:
        packed: the set.
        files: the folder it was packed from, to read its files as the notebook does, grey three
            times; without it the images are the packed array's.
        pixels: to resize them to.
        mirror: half of them at random.
    """

    def __init__(self, packed: Path, files: Path | None, pixels: int, mirror: bool) -> None:
        import_torchvision()
        from torchvision import transforms

        self.labels = PackedSet(packed).labels
        self.array = np.load(packed / "images.npy", mmap_mode="r")
        rows = (packed / "files.jsonl").read_text().splitlines()
        self.files = [files / json.loads(row)["name"] for row in rows] if files else []
        resize = [transforms.Resize((pixels, pixels))] if pixels != self.array.shape[-1] else []
        flip = [transforms.RandomHorizontalFlip()] if mirror else []
        self.transform = transforms.Compose([*resize, *flip])

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if self.files:
            image = np.load(self.files[i], allow_pickle=False).astype(np.float32)
            image = np.concatenate([image] * 3)
        else:
            image = self.array[i].copy()
        return self.transform(torch.from_numpy(image)), int(self.labels[i])


def network(maker: str, cfg: EnsembleConfig, weights: dict[str, Tensor]) -> nn.Module:
    """The networks of lensdist's ensemble, with its weights, as timm or torchvision builds them."""
    bands = 3 if cfg.grey == "repeat" else 1
    nets = []
    for k, member in enumerate(Ensemble(cfg, 3).backbones):
        if maker == "timm":
            import_torchvision()
            import timm

            net: Any = timm.create_model(member.architecture, in_chans=bands, num_classes=3)
        else:
            net = import_torchvision().models.get_model(member.architecture, weights=None)
            holder, first = (net, "conv1") if hasattr(net, "fc") else (net.features, "conv0")
            width = getattr(holder, first).out_channels
            setattr(holder, first, nn.Conv2d(bands, width, 7, 2, 3, bias=False))
        place = "fc" if hasattr(net, "fc") else "classifier"
        setattr(net, place, make_head(getattr(net, place).in_features, cfg, 3))
        names = member.names.items()
        net.load_state_dict({theirs: weights[f"members.{k}.{ours}"] for theirs, ours in names})
        nets.append(net)
    return Mean(nets)


class Mean(nn.Module):
    """The mean of the networks' logits."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([net(x) for net in self.nets]).mean(0)


def turn_of(
    loop: Loop, maker: str, cfg: CommonRun, weights: dict[str, Tensor], images: Images,
    order: Any, batch: int, workers: int = 0, **how: Any,
) -> Turn:  # fmt: skip
    """A loop that begins anew from these weights each time, on the images that `order` draws."""
    loader: DataLoader[Any] = DataLoader(
        images, batch, sampler=order, drop_last=True, num_workers=workers, pin_memory=workers > 0
    )

    def turn(watch: Watch) -> None:
        torch.use_deterministic_algorithms(False)  # lensdist's settings are lensdist's
        torch.backends.cudnn.benchmark = maker == "timm"  # its train.py does
        torch.set_float32_matmul_precision("highest")
        net = network(maker, cfg.model, weights).to(watch.device)
        loop(net, watch, loader, cfg.optim.lr, **how)

    return turn


def one_band(weight: Tensor) -> Tensor:
    """Kernels for three bands folded into one; other weights as they are."""
    return fold(weight, 1) if weight.dim() == 4 and weight.shape[1] == 3 else weight


def notebook(net: nn.Module, watch: Watch, loader: Iterable[Batch], rate: float) -> None:
    """The reference notebook's loop."""
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(net.parameters(), lr=rate)
    net.train()
    running, right, total = 0.0, 0, 0
    for image, label in watch.over(loader):
        image, label = image.to(watch.device), label.to(watch.device)
        optimizer.zero_grad()
        logits = net(image)
        loss = criterion(logits, label)
        loss.backward()
        optimizer.step()
        running += loss.item()
        right += int((logits.argmax(1) == label).sum().item())
        total += len(label)
        watch.losses.append(loss.detach())


def timm_loop(
    net: nn.Module,
    watch: Watch,
    loader: Iterable[Batch],
    rate: float,
    precision: str,
    channels_last: bool,
) -> None:
    """timm's `train_one_epoch` without its prefetcher."""
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
    from timm.utils import AverageMeter  # type: ignore[attr-defined]

    if channels_last:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, losses = create_optimizer_v2(net, opt="adam", lr=rate), AverageMeter()  # type: ignore[no-untyped-call]
    net.train()
    for image, label in watch.over(loader):
        image, label = image.to(watch.device), label.to(watch.device)
        if channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast(watch.device.type, torch.bfloat16, precision == "bf16"):
            loss = F.cross_entropy(net(image), label)
        losses.update(loss.item(), image.size(0))  # type: ignore[no-untyped-call]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        watch.losses.append(loss.detach())


def lightning_loop(
    net: nn.Module, watch: Watch, loader: Iterable[Batch], rate: float, precision: str
) -> None:
    """Lightning's Trainer with checkpoints, logger, progress bar and summary switched off."""
    import_torchvision()
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Batch, index: int) -> Tensor:
            image, label = batch
            loss = F.cross_entropy(self.net(image), label)
            watch.losses.append(loss.detach())
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.net.parameters(), lr=rate)

    class Watched:  # its length known: else Lightning fetches a batch ahead of the step
        def __iter__(self) -> Iterator[Batch]:
            return watch.over(loader)

        def __len__(self) -> int:
            return watch.last + 1

    trainer = lightning.Trainer(
        accelerator="gpu" if watch.device.type == "cuda" else "cpu", devices=1, max_epochs=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, precision="bf16-mixed" if precision == "bf16" else "32-true",
    )  # fmt: skip
    trainer.fit(Module(), train_dataloaders=Watched())
