"""The processes of a run and their collectives, through accelerate.

accelerate does devices, DDP wrapping, autocast, the fp16 scaler and collectives. Data order,
accumulation, schedules and checkpoints are lensdist's own (`docs/log.md` says why).
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import NoReturn, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    AutocastKwargs,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    KwargsHandler,
)
from torch import Tensor, nn

from lensdist.distributed import rendezvous
from lensdist.distributed.config import SpeedConfig
from lensdist.utils.errors import UserError

T = TypeVar("T")

_NOT_FOR_ACCELERATE = (
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "ACCELERATE_DYNAMO_BACKEND",
)
"""Settings that the run has adopted; accelerate would use its own FSDP, DeepSpeed and compiler."""


class DistributedContext:
    """All processes of a run: this one's rank and device, and collectives.

    Args:
        precision: of matrix products and convolutions, as in the run's settings.
        sharded: whether each process holds only a shard of the network (`fsdp`, `deepspeed`).
        bucket_mb: size of the buckets in which DDP sends gradients.

    Raises:
        UserError: the device cannot compute in this precision, or the processes that the launcher
            started do not find each other.
    """

    def __init__(
        self,
        precision: str = "no",
        *,
        sharded: bool = False,
        bucket_mb: int = SpeedConfig().bucket_mb,
    ) -> None:
        for name in _NOT_FOR_ACCELERATE:
            os.environ.pop(name, None)
        if os.environ.get("WORLD_SIZE", "1") != "1" and not torch.accelerator.is_available():
            # Else accelerate connects processes on CPUs only if told so, as its own launcher does.
            os.environ.setdefault("ACCELERATE_USE_CPU", "true")
        rendezvous.stay_on_this_machine()
        handlers: list[KwargsHandler] = [
            InitProcessGroupKwargs(init_method=rendezvous.METHOD),
            DistributedDataParallelKwargs(
                broadcast_buffers=False,  # see distributed/batchnorm.py
                gradient_as_bucket_view=True,
                bucket_cap_mb=bucket_mb,
            ),
        ]
        if sharded:
            # A weight is used once in a forward pass; autocast's copies in half precision, kept
            # until its end, would add up to a whole network on every process.
            handlers.append(AutocastKwargs(cache_enabled=False))
        AcceleratorState._reset_state()  # an earlier run of this process may have set another
        autocast = "bf16" if precision == "fp8" else precision
        try:
            self.accelerator = Accelerator(mixed_precision=autocast, kwargs_handlers=handlers)
        except ValueError as e:  # fp16 without a GPU, or bf16 on a device without it
            raise UserError(f"precision {precision}: {e}; use precision=no here") from e
        self.rank: int = self.accelerator.process_index
        self.size: int = self.accelerator.num_processes
        # accelerate calls the CPU of local rank 1 "cpu:1"; moving a module there copies buffers.
        on_cpu = self.accelerator.device.type == "cpu"
        self.device: torch.device = torch.device("cpu") if on_cpu else self.accelerator.device
        if precision == "fp16" and on_cpu:
            # accelerate would silently train in float32.
            raise UserError("precision: fp16 needs a GPU, and there is none here; use bf16 or no")
        expected = int(os.environ.get("WORLD_SIZE", "1"))
        if self.size != expected:
            # `accelerate launch --cpu` does this: every process runs as if it were the only one.
            raise UserError(
                f"the launcher started {expected} processes but {self.size} found each other; on "
                "CPU use ACCELERATE_USE_CPU=true and --multi_gpu, without --cpu"
            )
        if sharded and not torch.distributed.is_initialized():
            # Their collectives need a process group even for one process.
            backend = "gloo" if on_cpu else "nccl"
            store = torch.distributed.HashStore()  # type: ignore[attr-defined]
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """Return all processes' rows (n, …) in rank order, (size * n, …); n is equal on all."""
        return self.accelerator.gather(rows) if self.size > 1 else rows

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any process; the answer is the same on all."""
        if self.size == 1:
            return flag
        found = torch.tensor([flag], dtype=torch.int32, device=self.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)  # half of a gather
        return bool(found)

    def agree(self, what: str, number: int) -> None:
        """Check that all processes found the same number in their files.

        Raises:
            UserError: they did not, and would wait for each other forever.
        """
        if self.size > 1:
            found = set(self.gather(torch.tensor([number], device=self.device)).tolist())
            if len(found) > 1:
                raise UserError(
                    f"processes found different {what} ({', '.join(map(str, sorted(found)))}); "
                    "all nodes must see the same run.dir"
                )

    def first(self, said: str | None) -> str | None:
        """Return on every process what the first of those that said something has said."""
        if self.size == 1:
            return said
        found: list[str | None] = [None] * self.size
        torch.distributed.all_gather_object(found, said)
        return next((each for each in found if each is not None), None)

    def backward(self, loss: Tensor) -> None:
        """Do the backward pass, scaled under fp16.

        accelerate's own `backward` first divides by its accumulation steps, which are always 1
        here; that is one kernel more.
        """
        scaler = self.accelerator.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()

    def seed(self, key: int) -> None:
        """Seed torch's global generator, and that of the device, from which dropout draws.

        The bits are those of `torch.manual_seed`, which takes 0.15 ms: it seeds every kind of
        device, and keeps a traceback for each that does not exist.
        """
        seed = key % 2**63
        if self.device.type not in ("cpu", "cuda"):
            torch.manual_seed(seed)
            return
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)

    def from_main(self, value: T) -> T:
        """Return the main process's value on every process, for decisions that must be the same."""
        if self.size > 1:
            box = [value]
            torch.distributed.broadcast_object_list(box, src=0)
            return box[0]
        return value

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            self.accelerator.wait_for_everyone()

    def wrap(self, model: nn.Module, *, ddp: bool) -> nn.Module:
        """Put a model, already on its device, under autocast and, if `ddp` is set, under DDP."""
        self.accelerator.free_memory()  # forget the wrapped modules of an earlier stage
        with warnings.catch_warnings():
            # accelerate does not use the new name yet; each process would warn at each stage.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return self.accelerator.prepare_model(  # type: ignore[no-any-return]
                model, device_placement=False, evaluation_mode=not ddp
            )

    @staticmethod
    def unwrap(model: nn.Module) -> None:
        """Undo the change that `wrap` made to the network itself: its forward pass under autocast.

        accelerate's own `unwrap_model` would import DeepSpeed to check whether the model is one of
        DeepSpeed's.
        """
        for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
            vars(model).pop(name, None)

    def close(self, code: int, *, together: bool) -> NoReturn:
        """Exit this process.

        gloo's worker threads sometimes abort at interpreter exit after all work is done. So all
        processes wait for each other, destroy the process group, flush, and skip the interpreter's
        teardown.

        Args:
            code: the exit code.
            together: whether all processes call this now; after a failure they may never.
        """
        if self.size > 1 and together:
            self.barrier()
            torch.distributed.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
