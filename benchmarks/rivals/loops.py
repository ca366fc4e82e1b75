"""The training loops of others, each for any network and any loss.

None averages weights, clips gradients, seeds a micro-batch or writes a log, which is to their
advantage.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.watch import Turn, Watch
from lensdist.utils.torchvision_compat import import_torchvision

Batch = tuple[Tensor, ...]
Loss = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
"""Maps a network and a batch on its device to the loss and the network's output."""
Read = Callable[[Tensor, Tensor, Batch], None]
Make = Callable[[], nn.Module]
Optimizer = Callable[[nn.Module], torch.optim.Optimizer]
Loop = Callable[[nn.Module, Watch, Iterable[Batch], Loss, Optimizer], None]


def turn_of(
    loop: Loop, make: Make, batches: Iterable[Batch], loss: Loss, optimizer: Optimizer,
    *, benchmark: bool = False, tf32: bool = False,
) -> Turn:  # fmt: skip
    """Return a turn that runs a loop from the beginning.

    Args:
        loop: of this module.
        make: builds the network, with its first weights.
        batches: the loader.
        loss: of a batch.
        optimizer: builds a network's optimizer.
        benchmark: whether cuDNN times its kernels to choose them.
        tf32: whether float32 products may be rounded.
    """

    def turn(watch: Watch) -> None:
        torch.use_deterministic_algorithms(False)  # lensdist's settings do not apply to others
        torch.backends.cudnn.benchmark = benchmark
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        loop(make().to(watch.device).train(), watch, batches, loss, optimizer)

    return turn


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of lensdist's `precision`."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, precision != "no")


def by_hand(precision: str, read: Read = lambda *step: None, channels_last: bool = False) -> Loop:
    """Return a hand-written loop.

    Args:
        precision: as lensdist's.
        read: what it reads from the device at each step, given the loss, the network's output and
            the batch.
        channels_last: whether images and weights have that layout.
    """

    def loop(
        net: nn.Module, watch: Watch, loader: Iterable[Batch], loss: Loss, optimizer: Optimizer
    ) -> None:
        if channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        adam = optimizer(net)
        for found in watch.over(loader):
            batch = tuple(tensor.to(watch.device) for tensor in found)
            if channels_last:
                image = batch[0].contiguous(memory_format=torch.channels_last)
                batch = (image, *batch[1:])
            adam.zero_grad()
            with autocast(watch.device, precision):
                value, made = loss(net, batch)
            value.backward()  # type: ignore[no-untyped-call]
            adam.step()
            read(value, made, batch)
            watch.losses.append(value.detach())

    return loop


def notebook() -> Loop:
    """Return the reference notebooks' loop: float32, and the loss read at each step.

    Correct answers are counted too, if the last tensor of a batch is labels.
    """

    def read(value: Tensor, made: Tensor, batch: Batch) -> None:
        value.item()
        if made.dim() == 2:
            (made.argmax(1) == batch[-1]).sum().item()

    return by_hand("no", read)


def timm_loop(precision: str, channels_last: bool = False) -> Loop:
    """Return timm's `train_one_epoch` without its prefetcher: the loss is read at each step."""
    import_torchvision()
    meter = import_module("timm.utils").AverageMeter()
    return by_hand(
        precision, lambda value, made, _: meter.update(value.item(), len(made)), channels_last
    )


def timm_adam(kind: str, rate: float, decay: float) -> Optimizer:
    """Return a function that builds timm's own optimizer."""

    def make(net: nn.Module) -> torch.optim.Optimizer:
        import_torchvision()
        create: Any = import_module("timm.optim").create_optimizer_v2
        made: torch.optim.Optimizer = create(net, opt=kind, lr=rate, weight_decay=decay)
        return made

    return make


def lightning_loop(precision: str) -> Loop:
    """Return Lightning's Trainer without checkpoints, logger, progress bar and summary."""
    name = {"no": "32-true", "fp16": "16-mixed"}.get(precision, "bf16-mixed")

    def loop(
        net: nn.Module, watch: Watch, loader: Iterable[Batch], loss: Loss, optimizer: Optimizer
    ) -> None:
        import_torchvision()
        import lightning

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="lightning")

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def training_step(self, batch: Batch, index: int) -> Tensor:
                value, _ = loss(self.net, tuple(batch))
                watch.losses.append(value.detach())
                self.log("loss", value)
                return value

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return optimizer(self.net)

        class Watched:  # with a length: else Lightning fetches a batch ahead
            def __iter__(self) -> Iterator[Batch]:
                return watch.over(loader)

            def __len__(self) -> int:
                return watch.last + 1

        trainer = lightning.Trainer(
            accelerator="gpu" if watch.device.type == "cuda" else "cpu", devices=1, max_epochs=1,
            logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, precision=name,  # type: ignore[arg-type]
        )  # fmt: skip
        trainer.fit(Module(), train_dataloaders=Watched())

    return loop
