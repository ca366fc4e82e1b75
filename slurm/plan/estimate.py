"""Estimate how long a phase will take, for `plan` (torch-free).

Only training is counted, not evaluations, saves, or the wait for a job to start.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lensdist.config.schema import BaseRun, schema_of
from lensdist.data.manifest import MANIFEST
from lensdist.estimate.network import network_of, train_flops
from lensdist.estimate.scaling import scaling
from lensdist.phases import COMPLETE, saved_steps
from lensdist.tracking.metrics_log import read
from lensdist.utils.errors import UserError
from lensdist.utils.sealed import read_json
from lensdist.utils.text import counted, duration
from slurm.config.cluster import Cluster

_LAST = 20  # rows that a rate is the median of
_STEP = 0.01  # s; a step of 2,500 kernels takes no less, however small its images and batch


@dataclass(frozen=True)
class Estimate:
    """The estimated rest of a phase.

    Attributes:
        images: images still to train on, over all epochs.
        images_per_s: of the whole job.
        gpu_hours: 0 on CPUs; `cpu_hours`, of cores, are 0 on GPUs.
        jobs: attempts of the walltime's length.
        source: where the rate comes from: `measured in runs/vi_a/pretrain`.
        besides: what takes time and is not known.
    """

    images: int
    images_per_s: float
    processes: int
    seconds: float
    gpu_hours: float
    cpu_hours: float
    jobs: int
    source: str
    besides: tuple[str, ...]


class _Rate(NamedTuple):
    """Images a second of one process."""

    value: float
    gpu: bool
    source: str


def estimate(
    config: BaseRun, run: Path, samples: int | None, cluster: Cluster, like: Sequence[Path]
) -> Estimate | None:
    """Estimate a training phase at the fewest nodes that the cluster may give it.

    The rate is, best first: measured in this run; measured in a finished run of the same preset and
    settings that matter for speed; predicted from `cluster.hardware` (`lensdist estimate`); the
    network's arithmetic over `cluster.tflops`, which ignores overheads and is too high for small
    networks. Measured rates scale with the number of processes. A CPU's rate is not used for a GPU,
    nor the other way round; the GPU of a measurement is named, since the cluster's GPU is not known
    here.

    The estimate is too long if `train.early_stop` ends the run sooner, or if it has stages: the
    rate is the last stage's, in which everything trains.

    Args:
        run: the run's folder; it need not exist.
        samples: training images of an epoch; None if unknown.
        like: folders of other runs.

    Returns:
        None if the images or the rate are unknown, or an epoch is shorter than a step.
    """
    batch = config.train.global_batch
    if samples is None or samples < batch:
        return None
    total = config.train.max_steps or config.train.epochs * (samples // batch)
    done = next((step for step, _ in _checkpoints(run)), 0)
    images = max(total - done, 0) * batch
    nodes = cluster.fewest
    processes = nodes * cluster.per_node
    rate = _rate(config, run, cluster, processes, like)
    if rate is None:
        return None
    seconds = images / (rate.value * processes)
    cores = nodes * (cluster.cpus_per_task or cluster.per_node)
    return Estimate(
        images=images,
        images_per_s=rate.value * processes,
        processes=processes,
        seconds=seconds,
        gpu_hours=seconds * processes / 3600 if rate.gpu else 0,
        cpu_hours=0 if rate.gpu else seconds * cores / 3600,
        jobs=max(1, math.ceil(seconds / (60 * cluster.walltime - cluster.save_before_end))),
        source=rate.source,
        besides=_besides(config),
    )


def line(estimate: Estimate, cluster: Cluster) -> str:
    """Return an estimate in a line, such as `about 3:20 h on 8 GPUs, 27 GPU-hours in 1 job (…)`."""
    if not estimate.images:
        return "all steps are done; only the export is left"
    where = counted(estimate.processes, "process" if estimate.cpu_hours else "GPU")
    more = " or more" if cluster.fewest < cluster.most else ""
    without = f"; not counted: {' and '.join(estimate.besides)}" if estimate.besides else ""
    return (
        f"about {duration(max(1.0, estimate.seconds))} on {where}{more}, "
        f"{_hours([estimate])} in {counted(estimate.jobs, 'job')} "
        f"({estimate.source}: {_amount(estimate.images_per_s)} images/s{without})"
    )


def total(estimates: Mapping[str, Estimate | None]) -> str:
    """Return the hours of all phases, and the names of those that are unknown."""
    known = [e for e in estimates.values() if e is not None]
    unknown = [name for name, e in estimates.items() if e is None]
    parts = [f"{_hours(known)} in all"] if known else []
    return "; ".join([*parts, f"no estimate for {', '.join(unknown)}"] if unknown else parts)


def _rate(
    config: BaseRun, run: Path, cluster: Cluster, processes: int, like: Sequence[Path]
) -> _Rate | None:
    found = _measured(run, config, cluster, processes)
    for other in like:
        theirs = _finished(other) if found is None and other != run else None
        if theirs is not None and _alike(theirs, config):
            found = _measured(other, theirs, cluster, processes)
    if found is not None:
        return found
    if cluster.hardware is not None and cluster.gpus_per_node:
        return _predicted(config, cluster, processes)
    flops = None if cluster.tflops is None else train_flops(config)
    if flops is None or cluster.tflops is None:
        return None
    source = f"from {flops / 1e9:.2g} GFLOP an image at {cluster.tflops:g} TFLOP/s"
    rate, gpu = cluster.tflops * 1e12 / flops, cluster.gpus_per_node is not None
    most = config.train.global_batch / (_STEP * processes)
    if gpu and rate > most:
        rate, source = most, f"at {1000 * _STEP:.0f} ms a step, that the host takes to launch it"
    return _Rate(rate, gpu, source)


def _predicted(config: BaseRun, cluster: Cluster, processes: int) -> _Rate | None:
    """Return the rate from `lensdist estimate`."""
    assert cluster.hardware is not None
    with suppress(UserError):  # a network that cannot be traced
        row = scaling(config, cluster.hardware, [processes], cluster.per_node)[0]
        source = f"predicted for {cluster.hardware.name}, whose {row.step.limit} takes longest"
        return _Rate(row.images_s / processes, True, source)
    return None


def _measured(run: Path, config: BaseRun, cluster: Cluster, processes: int) -> _Rate | None:
    """Return the rate of the last stage, if the newest checkpoint names the machine."""
    step, machine = next(((s, m) for s, m in _checkpoints(run) if m), (0, {}))
    device, theirs = machine.get("device"), machine.get("processes")
    if not isinstance(device, str) or not isinstance(theirs, int) or theirs < 1:
        return None
    gpu = device != "cpu"
    if (gpu and cluster.on_cpu) or (not gpu and cluster.gpus_per_node is not None):
        return None
    rates = _rates(run / "metrics.jsonl", step, _last_stage_from(config))
    if not rates:
        return None
    verb = "measured" if theirs == processes else f"scaled from {counted(theirs, 'process')}"
    place = run.relative_to(Path.cwd()) if run.is_relative_to(Path.cwd()) else run
    named = f" on {device}" if gpu else ""
    return _Rate(statistics.median(rates[-_LAST:]) / theirs, gpu, f"{verb} in {place}{named}")


def _rates(file: Path, step: int, epoch: float) -> list[float]:
    """Images a second of the life that saved `step`, after `epoch`, oldest first."""
    rates: list[float] = []
    with suppress(OSError):
        for row in read(file):
            if row["step"] > step:
                break  # a later life's, perhaps on other processes
            if row.get("what") == "resumed" and row["step"] < step:
                rates = []
            value = row.get("images_per_s")
            if row.get("kind") == "train" and value and row.get("epoch", 0) > epoch:
                rates.append(float(value))
    return rates


def _last_stage_from(config: BaseRun) -> float:
    """Return the epoch from which all parameters train that ever do."""
    with suppress(UserError):
        return config.train.epochs * network_of(config).full_from
    return 0.0


def _checkpoints(run: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Step and machine (empty where it cannot be read) of each, newest first."""
    for step, folder in reversed(saved_steps(run).items()):
        machine: dict[str, Any] = {}
        with suppress(OSError, ValueError, KeyError, TypeError):
            machine = dict(read_json(folder / "checkpoint.json")["meta"]["machine"])
        yield step, machine


def _finished(run: Path) -> BaseRun | None:
    """Return the configuration of a finished run; its files are not verified for an estimate."""
    with suppress(OSError, ValueError, KeyError, TypeError, UserError):
        raw = read_json(run / COMPLETE)["config"]
        return schema_of(raw).model_validate(raw)
    return None


def _alike(one: BaseRun, other: BaseRun) -> bool:
    """Return whether a step of both takes equally long on equal machines."""

    def matters(config: BaseRun) -> list[Any]:
        own = config.model_dump(mode="json")
        keys = ["task", "preset", "model", "mask", "precision", "linear_probe", "preprocess"]
        found = [own.get(key) for key in keys] + [own["data"]["source"]]
        return found + [own["train"][key] for key in ("global_batch", "reproducible")]

    return matters(one) == matters(other)


def _besides(config: BaseRun) -> tuple[str, ...]:
    found = []
    if config.data.path is None and not (config.run.dir / "data" / MANIFEST).exists():
        found.append("simulating the images")
    if config.preprocess.scale == "lens_fit":
        found.append("fitting a lens to each, once")
    return tuple(found)


def _hours(estimates: Sequence[Estimate]) -> str:
    gpus, cpus = sum(e.gpu_hours for e in estimates), sum(e.cpu_hours for e in estimates)
    parts = [f"{_amount(gpus)} GPU-hours"] if gpus else []
    parts += [f"{_amount(cpus)} core-hours"] if cpus or not gpus else []
    return " and ".join(parts)


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
