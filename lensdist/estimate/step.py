"""How long a step takes: rooflines of its operations, and a simulation of what is sent while it
computes (torch-free).

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

_LAUNCH = 5e-6  # s of the host for a kernel: 2,500 of the recipe's ensemble take 12 ms
_REPLAY = 1e-6  # s of the device for a kernel of a CUDA graph
_ADAM = 7 * FLOAT  # bytes a parameter: weight, gradient, two moments in; all but the gradient out
_AVERAGE = 3 * FLOAT  # bytes a parameter
_BUCKET_MB = 2**20  # bytes
_QUANTISED = 2  # bytes moved besides for a number that becomes float8, in each product
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
        arithmetic: seconds in operations that products bound.
        memory: in those that traffic bounds.
        launching: seconds more that the host takes.
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
    """An optimizer step, in seconds.

    Attributes:
        compute: of all micro-batches of a GPU.
        optimizer: of Adam and the average.
        sent: that the links are busy.
        exposed: of those, when nothing is computed.
        parts: what the step's time is made of, by name.
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
        """What most of it goes to."""
        return max(self.parts, key=lambda name: self.parts[name])


def compute(stage: Stage, cfg: BaseRun, hardware: Hardware, gpus: int = 1) -> Compute:
    """Time a micro-batch's forward and backward pass on one of so many GPUs.

    Transformer layers that are computed again cost a forward pass more.
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
    # The host runs ahead where kernels are long, so only its sum counts; it delays all alike.
    slower = max(1.0, host / device) if device else 1.0
    work = tuple(
        Work(forward * slower, backward * slower, layer.weights, layer.trained, layer.block)
        for layer, (forward, backward) in zip(stage.layers, raw, strict=True)
    )
    return Compute(work, bound[True], bound[False], max(0.0, host - device))


def _roofline(op: Op, cfg: BaseRun, hardware: Hardware, batch: int) -> tuple[float, bool]:
    """Seconds of a micro-batch, forward, and whether products bound them."""
    arithmetic = op.flops * batch / hardware.flops(cfg, wide=op.wide)
    traffic = (op.moved * batch + op.weights * op.width) / hardware.bandwidth
    seconds = max(arithmetic, traffic)
    if op.wide and hardware.in_fp8(cfg):
        numbers = op.moved / op.width * batch
        seconds += _QUANTISED * numbers / hardware.bandwidth
    return seconds, arithmetic > traffic


def _kernels(op: Op) -> tuple[int, int]:
    """Forward, with the copy of weights; and backward: gradients of input, weights and bias."""
    copied = op.weights > 0 and op.width < FLOAT
    return 1 + copied, 3 if op.flops else 1


class Timeline:
    """One GPU and one link. Each does one thing after the other, none before it is ready."""

    def __init__(self) -> None:
        self.now = 0.0
        """When the GPU has done what it was given."""
        self.link = 0.0
        self.sent = 0.0
        """Seconds that the link was busy."""
        self.computed = 0.0

    def run(self, seconds: float, ready: float = 0.0) -> float:
        """Compute; returns when it began."""
        began = max(self.now, ready)
        self.now = began + seconds
        self.computed += seconds
        return began

    def send(self, seconds: float, ready: float) -> float:
        """Communicate; returns when it is done."""
        self.link = max(self.link, ready) + seconds
        self.sent += seconds
        return self.link

    def wait(self) -> None:
        """Until everything has arrived."""
        self.now = max(self.now, self.link)


def simulate(found: Compute, micros: int, cfg: BaseRun, hardware: Hardware, links: Links) -> Step:
    """A step of `micros` micro-batches on each GPU, and what they tell each other meanwhile."""
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
    if cfg.engine == "deepspeed" and cfg.shard.stage < 3:  # each has stepped its share only
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
    """Buckets of gradients leave while the backward pass goes on (Li et al. 2020,
    arXiv:2006.15704). DeepSpeed, too, sums each on every process, and throws away most of it:
    its `use_multi_rank_bucket_allreduce`."""
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
    """`train.reproducible`: every process gets every micro-batch's gradient, once all are there."""
    line.run(sum(one.forward + one.backward for one in work))
    whole = FLOAT * sum(one.trained for one in work)
    line.send(links.scatter(whole * links.gpus), line.now)


def _sharded(line: Timeline, work: Sequence[Work], links: Links, *, again: bool) -> None:
    """Weights are gathered layer by layer, the next while one computes, and gradients scattered
    (Zhao et al. 2023, arXiv:2304.11277); `again`: and gathered again in the backward pass.

    What is outside of transformer layers goes together, first and last.
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
