"""Estimate the time of a step, from rooflines and simulated communication (torch-free).

A roofline (Williams et al. 2009, doi:10.1145/1498765.1498785) is a bound: an operation takes the
longer of its arithmetic and its memory traffic. Host and network are added to it here: kernels are
launched one after the other, and a bucket of gradients waits for its layers and for the link.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lensdist.config.schema import BaseRun
from lensdist.estimate.hardware import Hardware, Links
from lensdist.estimate.memory import FLOAT
from lensdist.estimate.network import Op, Stage

_LAUNCH = 5e-6  # s of the host per kernel: 2,500 of the recipe's ensemble take 12 ms
_REPLAY = 1e-6  # s of the device per kernel of a CUDA graph
_ADAM = 7 * FLOAT  # bytes per parameter: weight, gradient, two moments in; all but the gradient out
_AVERAGE = 3 * FLOAT  # bytes per parameter
_BUCKET_MB = 2**20  # bytes
_QUANTISED = 2  # more bytes moved per number quantised to float8, in each product
_HOST_LINK = 25e9  # bytes/s between a GPU and the machine's memory: PCIe 4.0 in practice
_HOST_MEMORY = 20e9  # bytes/s that a process's cores read and write, each with its own share


@dataclass(frozen=True)
class Work:
    """A layer's share of one micro-batch: seconds, and parameters."""

    forward: float
    backward: float
    weights: float
    trained: float
    block: bool


@dataclass(frozen=True)
class Compute:
    """A micro-batch on one GPU.

    Attributes:
        work: of each layer, in order.
        arithmetic: seconds in operations that are bound by products.
        memory: seconds in operations that are bound by memory traffic.
        launching: additional seconds of the host.
    """

    work: tuple[Work, ...]
    arithmetic: float
    memory: float
    launching: float

    @property
    def seconds(self) -> float:
        return sum(work.forward + work.backward for work in self.work)


@dataclass(frozen=True)
class Step:
    """The time of an optimizer step, in seconds.

    Attributes:
        compute: of all micro-batches of a GPU.
        optimizer: of Adam and the average.
        sent: time in which the links are busy.
        exposed: the part of it in which nothing is computed.
        parts: the step's time by cause.
    """

    compute: float
    optimizer: float
    sent: float
    exposed: float
    parts: dict[str, float]

    @property
    def seconds(self) -> float:
        return self.compute + self.optimizer + self.exposed

    @property
    def limit(self) -> str:
        """The cause of most of the time."""
        return max(self.parts, key=lambda name: self.parts[name])


def compute(stage: Stage, cfg: BaseRun, hardware: Hardware, gpus: int = 1) -> Compute:
    """Time a micro-batch's forward and backward pass on one of so many GPUs.

    Transformer layers that are recomputed cost one more forward pass.
    """
    bound = {True: 0.0, False: 0.0}
    raw: list[tuple[float, float]] = []
    kernels = 0
    for layer in stage.layers:
        forward = backward = 0.0
        for op in layer.ops:
            if op.is_free(cfg):
                continue
            seconds, arithmetic = _roofline(op, cfg, hardware, cfg.train.micro(gpus))
            again = cfg.speed.recompute and layer.block and op.learns
            forward, backward = forward + seconds, backward + (again + op.backward) * seconds
            bound[arithmetic] += (1 + again + op.backward) * seconds
            ahead, back = _kernels(op)
            kernels += ahead * (1 + again) + back * op.learns
        raw.append((forward, backward))
    device = sum(forward + backward for forward, backward in raw)
    host = kernels * (_REPLAY if cfg.speed.cuda_graphs else _LAUNCH)
    # The host runs ahead if kernels are long, so only its sum counts; it slows all layers alike.
    slower = max(1.0, host / device) if device else 1.0
    work = tuple(
        Work(forward * slower, backward * slower, layer.weights, layer.trained, layer.block)
        for layer, (forward, backward) in zip(stage.layers, raw, strict=True)
    )
    return Compute(work, bound[True], bound[False], max(0.0, host - device))


def _roofline(op: Op, cfg: BaseRun, hardware: Hardware, batch: int) -> tuple[float, bool]:
    """Return the seconds of a micro-batch, forward, and whether products bound them."""
    arithmetic = op.flops * batch / hardware.flops(cfg, wide=op.wide)
    traffic = (op.moved * batch + op.weights * op.width) / hardware.bandwidth
    seconds = max(arithmetic, traffic)
    if op.wide and hardware.in_fp8(cfg):
        numbers = op.moved / op.width * batch
        seconds += _QUANTISED * numbers / hardware.bandwidth
    return seconds, arithmetic > traffic


def _kernels(op: Op) -> tuple[int, int]:
    """Count the kernels: forward, with a copy of weights; backward, for input, weights and bias."""
    copied = op.weights > 0 and op.width < FLOAT
    return 1 + copied, 3 if op.flops else 1


class Timeline:
    """The timeline of one GPU and one link. Each does one thing at a time, when it is ready."""

    def __init__(self) -> None:
        self.now = 0.0
        """Time at which the GPU has done all its work."""
        self.link = 0.0
        self.sent = 0.0
        """Seconds that the link was busy."""
        self.computed = 0.0

    def run(self, seconds: float, ready: float = 0.0) -> float:
        """Compute for `seconds`, and return when it began."""
        began = max(self.now, ready)
        self.now = began + seconds
        self.computed += seconds
        return began

    def send(self, seconds: float, ready: float) -> float:
        """Communicate for `seconds`, and return when it is done."""
        self.link = max(self.link, ready) + seconds
        self.sent += seconds
        return self.link

    def wait(self) -> None:
        """Wait until everything has arrived."""
        self.now = max(self.now, self.link)


def simulate(found: Compute, micros: int, cfg: BaseRun, hardware: Hardware, links: Links) -> Step:
    """Simulate a step of `micros` micro-batches on each GPU, with its communication."""
    line = Timeline()
    if cfg.engine == "fsdp" or (cfg.engine == "deepspeed" and cfg.shard.stage == 3):
        for _ in range(micros):
            _sharded(line, found.work, links, again=cfg.shard.stage == 3)
    else:
        each = cfg.engine == "deepspeed" and cfg.shard.stage == 2
        for i in range(micros):
            _replicated(line, found.work, cfg, links, speaks=each or i == micros - 1)
    line.wait()
    optimizer = _optimizer(found.work, cfg, hardware, links.gpus)
    line.run(optimizer)
    if cfg.engine == "deepspeed" and cfg.shard.stage < 3:  # each has stepped only its share
        line.send(links.scatter(FLOAT * sum(work.trained for work in found.work)), line.now)
        line.wait()
    computed = line.computed - optimizer
    exposed = line.now - line.computed
    parts = {
        "arithmetic": micros * found.arithmetic,
        "memory traffic": micros * found.memory + optimizer,
        "launching kernels": micros * found.launching,
        "communication": exposed,
    }
    return Step(computed, optimizer, line.sent, exposed, parts)


def _replicated(
    line: Timeline, work: Sequence[Work], cfg: BaseRun, links: Links, *, speaks: bool
) -> None:
    """Send buckets of gradients during the backward pass (Li et al. 2020, arXiv:2006.15704).

    DeepSpeed, too, sums each on every process, by its `use_multi_rank_bucket_allreduce`.
    """
    if cfg.train.reproducible:
        _in_order(line, work, links)
        return
    filled = 0.0
    for one in work:
        line.run(one.forward)
    for one in reversed(work):
        line.run(one.backward)
        filled += FLOAT * one.trained * speaks
        if filled >= cfg.speed.bucket_mb * _BUCKET_MB:
            line.send(links.all_reduce(filled), line.now)
            filled = 0.0
    line.send(links.all_reduce(filled), line.now)


def _in_order(line: Timeline, work: Sequence[Work], links: Links) -> None:
    """Send every micro-batch's gradient to every process after the last (`train.reproducible`)."""
    line.run(sum(one.forward + one.backward for one in work))
    whole = FLOAT * sum(one.trained for one in work)
    line.send(links.scatter(whole * links.gpus), line.now)


def _sharded(line: Timeline, work: Sequence[Work], links: Links, *, again: bool) -> None:
    """Gather weights layer by layer, and scatter gradients (Zhao et al. 2023, arXiv:2304.11277).

    The next layer is gathered while one computes, and `again` in the backward pass. Parameters
    outside of transformer layers are gathered together, first, and scattered last.
    """
    blocks = [one for one in work if one.block]
    root = [one for one in work if not one.block]
    outside = FLOAT * sum(one.weights for one in root)
    rooted = line.send(links.scatter(outside), line.now)
    for backward in (False, True):
        gathers = again or not backward
        if backward and gathers:
            rooted = line.send(links.scatter(outside), line.now)
        coming = iter(blocks[::-1] if backward else blocks)
        ready = _gather(line, links, next(coming, None), line.now) if gathers else 0.0
        for one in reversed(work) if backward else work:
            seconds = one.backward if backward else one.forward
            began = line.run(seconds, ready if one.block else rooted)
            if one.block and gathers:
                ready = _gather(line, links, next(coming, None), began)
            if one.block and backward:
                line.send(links.scatter(FLOAT * one.trained), line.now)
    line.send(links.scatter(FLOAT * sum(one.trained for one in root)), line.now)


def _gather(line: Timeline, links: Links, one: Work | None, ready: float) -> float:
    return line.send(links.scatter(FLOAT * one.weights), ready) if one else 0.0


def _optimizer(work: Sequence[Work], cfg: BaseRun, hardware: Hardware, gpus: int) -> float:
    trained = sum(one.trained for one in work)
    mine = trained / gpus if cfg.engine != "ddp" else trained
    average = _AVERAGE if cfg.train.ema is not None else 0
    if cfg.shard.offload and cfg.engine != "ddp":
        return mine * (2 * FLOAT / _HOST_LINK + (_ADAM + average) / _HOST_MEMORY)
    return mine * (_ADAM + average) / hardware.bandwidth
