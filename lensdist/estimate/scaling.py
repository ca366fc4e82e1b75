"""Estimate a run on different numbers of GPUs (torch-free)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lensdist.config.schema import BaseRun
from lensdist.estimate.hardware import Hardware
from lensdist.estimate.memory import Memory, memory
from lensdist.estimate.network import Stage, network_of
from lensdist.estimate.step import Step, compute, simulate
from lensdist.utils.errors import UserError

MOST = 1024


@dataclass(frozen=True)
class Row:
    """An estimate of a run on so many GPUs.

    Attributes:
        gpus: processes.
        nodes: nodes that they are on.
        batch: images of a step.
        micros: micro-batches of each GPU.
        weak: whether `batch` is not the run's, which so many GPUs cannot share evenly.
        memory: of a GPU.
        step: of the stage in which most parameters train.
        images_s: images per second in that stage.
        efficiency: that rate per GPU, relative to one GPU alone with the run's own batch.
        epoch_s: seconds of an epoch; None if its images are not known, or fewer than a batch.
        gpu_hours: of the whole run; None as `epoch_s`.
    """

    gpus: int
    nodes: int
    batch: int
    micros: int
    weak: bool
    memory: Memory
    step: Step
    images_s: float
    efficiency: float
    epoch_s: float | None
    gpu_hours: float | None


def scaling(
    cfg: BaseRun,
    hardware: Hardware,
    counts: Sequence[int],
    per_node: int,
    samples: int | None = None,
) -> list[Row]:
    """Return a row for each number of GPUs.

    Args:
        cfg: the run's configuration.
        hardware: of the cluster.
        counts: numbers of GPUs.
        per_node: GPUs of a node.
        samples: images of an epoch; None if not known.

    Raises:
        UserError: a number of GPUs does not fill whole nodes, or the network cannot be traced.
    """
    network = network_of(cfg)
    full = network.fullest

    def step(gpus: int, stage: Stage) -> Step:
        found = compute(stage, cfg, hardware, gpus)
        links = hardware.links(gpus, per_node)
        return simulate(found, micros_of(cfg, gpus), cfg, hardware, links)

    def batch(gpus: int) -> int:
        return gpus * micros_of(cfg, gpus) * cfg.train.micro(gpus)

    alone = batch(1) / step(1, full).seconds

    def row(gpus: int) -> Row:
        _check(gpus, per_node)
        own, epoch, hours = step(gpus, full), None, None
        rate = batch(gpus) / own.seconds
        if samples is not None and samples >= batch(gpus):
            epoch = samples / rate
            of_stages = (
                stage.share * (own if stage is full else step(gpus, stage)).seconds
                for stage in network.stages
            )
            steps = cfg.train.max_steps or cfg.train.epochs * (samples // cfg.train.global_batch)
            images = steps * cfg.train.global_batch
            hours = images * sum(of_stages) / batch(gpus) * gpus / 3600
        return Row(
            gpus,
            -(-gpus // per_node),
            batch(gpus),
            micros_of(cfg, gpus),
            batch(gpus) != cfg.train.global_batch,
            memory(cfg, gpus, micros_of(cfg, gpus)),
            own,
            rate,
            rate / (gpus * alone),
            epoch,
            hours,
        )

    return [row(gpus) for gpus in counts]


def _check(gpus: int, per_node: int) -> None:
    if gpus < 1:
        raise UserError(f"{gpus} GPUs cannot train; give 1 or more")
    if gpus > per_node and gpus % per_node:
        raise UserError(
            f"{gpus} GPUs are not whole nodes of {per_node}; give a multiple, or set "
            "cluster.gpus_per_node"
        )


def micros_of(cfg: BaseRun, gpus: int) -> int:
    """Return the micro-batches of each GPU: its part of the step, rounded to a whole number."""
    return max(1, cfg.train.global_batch // cfg.train.micro(gpus) // gpus)


def usual_counts(per_node: int) -> list[int]:
    """Return powers of two on a node, and of its nodes: 1, 2, 4, 8, 16, … 1024."""
    return list(_powers(1, per_node - 1)) + list(_powers(per_node, MOST))


def _powers(first: int, last: int) -> Iterator[int]:
    while first <= last:
        yield first
        first *= 2
