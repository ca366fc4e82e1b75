"""Test each process's device, and its connection to the others, before a run reads any data.

It is done only if a launcher asks for it with `LENSDIST_PREFLIGHT=1`. The launcher reads the
reports (`utils/outcome.py`): a node whose process reports "device" is bad; if all devices work but
the processes do not get ready, the network is.
"""

from __future__ import annotations

import os
import time

import torch

from lensdist.distributed.context import DistributedContext
from lensdist.utils import outcome
from lensdist.utils.errors import UserError, first_line
from lensdist.utils.launched import DEVICE, MIN_TFLOPS, PREFLIGHT
from lensdist.utils.outcome import DeviceError

_DEPTH = 192  # 3 * 64: of the product with a known result


def build_context(precision: str, *, sharded: bool, bucket_mb: int) -> DistributedContext:
    """Build a `DistributedContext`, and raise `DeviceError` for a GPU or driver that does not work.

    Raises:
        UserError: see `DistributedContext`.
        DeviceError: this process should have a GPU but has none, or it cannot be used.
    """
    if not _asked():
        try:
            return DistributedContext(precision, sharded=sharded, bucket_mb=bucket_mb)
        except torch.distributed.DistStoreError as e:
            raise UserError(str(e)) from e
    outcome.announce("loaded", "", None, 0.0)
    _expect_gpu()
    try:
        return DistributedContext(precision, sharded=sharded, bucket_mb=bucket_mb)
    except RuntimeError as e:
        text = str(e).lower()
        # An error between processes is not one of the device, even if it mentions CUDA.
        if isinstance(e, torch.distributed.DistError) or not ("cuda" in text or "nvidia" in text):
            raise
        raise DeviceError(f"the GPU cannot be used: {first_line(e)}") from e


def check_devices(world: DistributedContext) -> None:
    """Test this process's device, then reach all other processes, and report both.

    Raises:
        UserError: the required speed is not a number.
        DeviceError: the device is not the requested one, fails, errs or is too slow.
        RuntimeError: the other processes cannot be reached, or send wrong numbers; this node may be
            good.
    """
    if not _asked():
        return
    minimum, began = _least(), time.monotonic()
    name = str(world.device)
    try:
        if world.device.type == "cuda":
            name += f" {torch.cuda.get_device_name(world.device)}"
        elif os.environ.get(DEVICE) == "cuda":
            raise DeviceError(f"the run is on {name} but the launcher requested a GPU")
        tflops = measure(world.device)
    except RuntimeError as e:
        raise DeviceError(f"{name} cannot be used: {first_line(e)}") from e
    if minimum is not None and tflops is not None and tflops < minimum:
        raise DeviceError(f"{name} does {tflops:.3g} TFLOP/s in bfloat16, less than {minimum:g}")
    outcome.announce("device", name, tflops, time.monotonic() - began)
    _try_sum(world)
    outcome.announce("ready", name, tflops, time.monotonic() - began)


def measure(device: torch.device) -> float | None:
    """Check a product with a known result, and return a GPU's TFLOP/s in bfloat16.

    Raises:
        DeviceError: the result is wrong.
        RuntimeError: the device cannot be used.
    """
    _try_product(device)
    return _speed(device) if device.type == "cuda" else None


def _asked() -> bool:
    return os.environ.get(PREFLIGHT) == "1"


def _least() -> float | None:
    text = os.environ.get(MIN_TFLOPS)
    try:
        return float(text) if text else None
    except ValueError as e:
        raise UserError(f"{MIN_TFLOPS} is {text!r}; give a number, or unset it") from e


def _expect_gpu() -> None:
    """Check that this process has a GPU of its own, if the launcher wants one.

    accelerate would take the CPU or refuse the precision, or let two processes share a GPU.

    Raises:
        UserError: no build of this torch's kind can use one.
        DeviceError: this node has none for it.
    """
    if os.environ.get(DEVICE) != "cuda":
        return
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        raise UserError(  # of every node, so none is to blame
            f"torch {torch.__version__} is a build for CPUs, and the launcher requested a GPU; "
            "install a build for GPUs, or set gpus_per_node to null"
        )
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]  # raises the reason
        except (RuntimeError, AssertionError) as e:
            raise DeviceError(f"no GPU can be used: {first_line(e)}") from e
        raise DeviceError("no GPU can be used, and torch gives no reason")
    count, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if local >= count:
        raise DeviceError(f"process {local} of this node needs a GPU of its own; there are {count}")


def _try_product(device: torch.device) -> None:
    """Check a matrix product of -1, 0 and 1, whose sums and partial sums bfloat16 holds exactly."""
    rows = 3072 if device.type == "cuda" else _DEPTH  # enough for all of a GPU's processors
    step = torch.arange(rows, device=device)
    factor = (step[:, None] + step[:_DEPTH]) % 3 - 1
    # A period of 3 brings -1, 0, 1 over -1, 0, 1 (sum 2), or over one of the two others (sum -1).
    aligned = (step[:, None] - step) % 3 == 0
    answer = torch.where(aligned, 2 * _DEPTH // 3, -_DEPTH // 3)
    for dtype in (torch.float32, torch.bfloat16):
        a = factor.to(dtype)
        wrong = int((a @ a.T != answer).sum())
        if wrong:
            raise DeviceError(
                f"{device} errs: {wrong} of {answer.numel()} numbers of a product in {dtype} "
                "are wrong"
            )


def _speed(device: torch.device) -> float:
    """Return the TFLOP/s of a GPU's matrix products in bfloat16, the best of five tries."""
    size, times = 4096, 10
    step = torch.arange(size, device=device)
    a = ((step[:, None] + step) % 3 - 1).bfloat16()
    seconds = []
    for _ in range(6):  # the first lets torch choose the kernel and the clock rise
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        for _ in range(times):
            a @ a
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 * times / min(seconds[1:]) / 1e12


def _try_sum(world: DistributedContext) -> None:
    """Check a sum over all processes of a megabyte from each."""
    if world.size == 1:
        return
    numbers = torch.full((2**18,), float(world.rank + 1), device=world.device)
    torch.distributed.all_reduce(numbers)
    due = world.size * (world.size + 1) / 2
    if not bool((numbers == due).all()):
        raise RuntimeError(
            f"a sum over all processes, which is {due:g}, came back wrong ({numbers.min():g} to "
            f"{numbers.max():g}); the network or its library is broken, on any of the nodes"
        )
