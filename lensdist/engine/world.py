"""The processes of a run, through accelerate: who am I, what do all of us say.

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

from lensdist.config.schema import BaseRun
from lensdist.engine import rendezvous
from lensdist.engine.launcher import ANSWERED, conflicts, from_environment
from lensdist.errors import UserError

T = TypeVar("T")


class DistributedContext:
    """All processes of a run.

    Args:
        cfg: for the precision.

    Raises:
        UserError: the launcher's settings contradict the run's, or the processes it started
            do not know of each other.
    """

    def __init__(self, cfg: BaseRun) -> None:
        found = conflicts(cfg, from_environment(os.environ))
        if found:
            raise UserError("\n".join(found))
        for name in ANSWERED:  # accelerate's own engines are not used: engine/parallel
            os.environ.pop(name, None)
        sharded = cfg.engine != "ddp"
        rendezvous.stay_on_this_machine()
        handlers: list[KwargsHandler] = [
            InitProcessGroupKwargs(init_method=rendezvous.METHOD),
            DistributedDataParallelKwargs(
                broadcast_buffers=False,  # running statistics are ours: engine/batchnorm.py
                gradient_as_bucket_view=True,
                bucket_cap_mb=cfg.speed.bucket_mb,
            ),
        ]
        if sharded:
            # A weight is used once in a forward pass; kept until its end, copies in half precision
            # would add up to a whole network on every process.
            handlers.append(AutocastKwargs(cache_enabled=False))
        AcceleratorState._reset_state()  # an earlier run of this process may have had another
        precision = "bf16" if cfg.precision == "fp8" else cfg.precision
        try:
            self.accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=handlers)
        except ValueError as e:  # fp16 without a GPU, bf16 where there is none
            raise UserError(f"precision {cfg.precision}: {e}; use precision=no here") from e
        self.engine: str = f"{cfg.engine} stage {cfg.shard.stage}" if sharded else cfg.engine
        last = cfg.speed.channels_last and not sharded
        layout = "channels last" if last else "channels first"
        self.kernels: str = f"compile {cfg.speed.compile}, {layout}"
        self.rank: int = self.accelerator.process_index
        self.size: int = self.accelerator.num_processes
        # accelerate calls the CPU of local rank 1 "cpu:1"; moving a module there copies buffers.
        on_cpu = self.accelerator.device.type == "cpu"
        self.device: torch.device = torch.device("cpu") if on_cpu else self.accelerator.device
        if cfg.precision == "fp16" and on_cpu:
            # accelerate would train in float32, without a word.
            raise UserError("precision: fp16 needs a GPU, and there is none here; use bf16 or no")
        expected = int(os.environ.get("WORLD_SIZE", "1"))
        if self.size != expected:
            # `accelerate launch --cpu` does this: every process thinks that it is alone.
            raise UserError(
                f"the launcher started {expected} processes but {self.size} found each other; on "
                "CPU use ACCELERATE_USE_CPU=true and --multi_gpu, without --cpu"
            )
        if sharded and not torch.distributed.is_initialized():
            # They talk to all processes even where there is one.
            backend = "gloo" if on_cpu else "nccl"
            store = torch.distributed.HashStore()  # type: ignore[attr-defined]
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """(n, …) of every process, n the same on all, in rank order: (size * n, …)."""
        return self.accelerator.gather(rows) if self.size > 1 else rows

    def any(self, flag: bool) -> bool:
        """Whether any process says so; the same answer on all."""
        if self.size == 1:
            return flag
        found = torch.tensor([flag], dtype=torch.int32, device=self.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)  # half of a gather
        return bool(found)

    def agree(self, what: str, number: int) -> None:
        """Make sure that all processes found the same number in their files.

        Raises:
            UserError: they did not, and would wait for each other for ever.
        """
        if self.size > 1:
            found = set(self.gather(torch.tensor([number], device=self.device)).tolist())
            if len(found) > 1:
                raise UserError(
                    f"processes found different {what} ({', '.join(map(str, sorted(found)))}); "
                    "all nodes must see the same run.dir"
                )

    def backward(self, loss: Tensor) -> None:
        """Backward pass, scaled under fp16.

        accelerate's own first divides by accumulation steps, which are ours: a kernel for nothing.
        """
        scaler = self.accelerator.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()

    def seed(self, key: int) -> None:
        """Seed torch's global generator, and that of the device, from which dropout draws.

        The same bits as `torch.manual_seed`, which takes 0.15 ms: it seeds every kind of device
        there could be, and keeps a traceback for each that is not there.
        """
        seed = key % 2**63
        if self.device.type not in ("cpu", "cuda"):
            torch.manual_seed(seed)
            return
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)

    def from_main(self, value: T) -> T:
        """The main process's value, on every process: where all must decide alike."""
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
        """A model, already on its device, under autocast and, if asked for, DDP."""
        self.accelerator.free_memory()  # forget what an earlier stage wrapped
        with warnings.catch_warnings():
            # accelerate does not know the new name yet, and this is said once a process and stage.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return self.accelerator.prepare_model(  # type: ignore[no-any-return]
                model, device_placement=False, evaluation_mode=not ddp
            )

    @staticmethod
    def unwrap(bare: nn.Module) -> None:
        """Undo what `wrap` did to the bare network itself: its forward pass under autocast.

        accelerate's own `unwrap_model` would import DeepSpeed to ask whether it is one of its own.
        """
        for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
            vars(bare).pop(name, None)

    def close(self, code: int, *, together: bool) -> NoReturn:
        """Leave with an exit code.

        Args:
            code: for whoever started this process.
            together: whether all processes come here now; after a failure they may never.

        gloo's worker threads sometimes abort at interpreter exit after all work is done; to leave
        in step, take the process group down, flush and skip the interpreter's teardown prevents it.
        """
        if self.size > 1 and together:
            self.barrier()
            torch.distributed.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
