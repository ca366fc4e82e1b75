"""A run on one GPU, on eight, on a thousand: rows of a table (torch-free)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lensdist.config.schema import BaseRun
from lensdist.errors import UserError
from lensdist.estimate.convolutional import KNOWN
from lensdist.estimate.hardware import Hardware
from lensdist.estimate.layers import Layer
from lensdist.estimate.memory import Memory, memory
from lensdist.estimate.network import frozen_share, layers_of, unknown_members
from lensdist.estimate.step import Step, compute, simulate

MOST = 1024


@dataclass(frozen=True)
class Row:
    """A run on so many GPUs.

    Attributes:
        gpus: processes.
        nodes: that they are on.
        batch: images of a step.
        micros: micro-batches of each GPU.
        weak: whether that is not the run's batch, which so many cannot share evenly.
        memory: of a GPU.
        step: of the stage in which most trains.
        images_s: images a second then.
        efficiency: that rate a GPU, beside what one GPU does alone with the run's own batch.
        epoch_s: seconds of an epoch; None: its images are not known, or fewer than a batch.
        gpu_hours: of the whole run, likewise.
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
    """A row for each number of GPUs.

    Args:
        cfg: the run's configuration.
        hardware: of the cluster.
        counts: of GPUs.
        per_node: GPUs of a node.
        samples: images of an epoch; None: not known.

    Raises:
        UserError: a number of GPUs that fills no whole nodes, or a network that is not known.
    """
    return [_Table(cfg, hardware, per_node, samples).row(gpus) for gpus in counts]


def check_members(cfg: BaseRun) -> None:
    """Make sure that the network is known.

    Raises:
        UserError: a member of an ensemble is not.
    """
    unknown = unknown_members(cfg)
    if unknown:
        raise UserError(f"model.members: {unknown[0]} cannot be estimated; {', '.join(KNOWN)} can")


def micros_of(cfg: BaseRun, gpus: int) -> int:
    """Micro-batches of each GPU: its part of the step, or as near to it as whole ones come."""
    return max(1, cfg.train.global_batch // cfg.train.micro(gpus) // gpus)


def usual_counts(per_node: int) -> list[int]:
    """Powers of two on a node, and of its nodes: 1, 2, 4, 8, 16, … 1024."""
    return list(_powers(1, per_node - 1)) + list(_powers(per_node, MOST))


def _powers(first: int, last: int) -> Iterator[int]:
    while first <= last:
        yield first
        first *= 2


class _Table:
    """What all rows of a run share."""

    def __init__(
        self, cfg: BaseRun, hardware: Hardware, per_node: int, samples: int | None
    ) -> None:
        check_members(cfg)
        self._cfg, self._hardware, self._per_node = cfg, hardware, per_node
        self._samples = samples
        self._frozen = frozen_share(cfg)
        self._whole, self._head = (
            layers_of(cfg, frozen=frozen) or [] for frozen in (self._frozen == 1, True)
        )
        self._alone = self._rate(self._step(1, self._micros(1), self._whole), 1, self._micros(1))

    def row(self, gpus: int) -> Row:
        if gpus < 1:
            raise UserError(f"{gpus} GPUs cannot train; give 1 or more")
        if gpus > self._per_node and gpus % self._per_node:
            raise UserError(
                f"{gpus} GPUs are no whole nodes of {self._per_node}; give a multiple, or set "
                "cluster.gpus_per_node"
            )
        micros = self._micros(gpus)
        found = memory(self._cfg, gpus, micros)
        assert found is not None  # all members are known
        step = self._step(gpus, micros, self._whole)
        rate = self._rate(step, gpus, micros)
        per_image = 1 / rate
        if 0 < self._frozen < 1:
            frozen = self._rate(self._step(gpus, micros, self._head), gpus, micros)
            per_image = (1 - self._frozen) / rate + self._frozen / frozen
        train, samples = self._cfg.train, self._samples
        epoch = hours = None
        batch = gpus * micros * train.micro(gpus)
        if samples is not None and samples >= batch:
            epoch = samples / rate
            steps = train.max_steps or train.epochs * (samples // train.global_batch)
            hours = steps * train.global_batch * per_image * gpus / 3600
        return Row(
            gpus,
            -(-gpus // self._per_node),
            batch,
            micros,
            batch != train.global_batch,
            found,
            step,
            rate,
            rate / (gpus * self._alone),
            epoch,
            hours,
        )

    def _micros(self, gpus: int) -> int:
        return micros_of(self._cfg, gpus)

    def _step(self, gpus: int, micros: int, layers: Sequence[Layer]) -> Step:
        links = self._hardware.links(gpus, self._per_node)
        found = compute(layers, self._cfg, self._hardware, gpus)
        return simulate(found, micros, self._cfg, self._hardware, links)

    def _rate(self, step: Step, gpus: int, micros: int) -> float:
        return gpus * micros * self._cfg.train.micro(gpus) / step.seconds
