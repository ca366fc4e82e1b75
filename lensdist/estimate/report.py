"""Format an estimate as text and as JSON, for `lensdist estimate` (torch-free)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from lensdist.config.schema import BaseRun
from lensdist.estimate.duration import short
from lensdist.estimate.hardware import Hardware
from lensdist.estimate.memory import Memory, memory, remedy, with_settings
from lensdist.estimate.network import network_of, train_bytes, train_flops
from lensdist.estimate.scaling import Row, micros_of, scaling

_ENGINES: tuple[tuple[str, int, bool], ...] = (
    ("ddp", 3, False),
    ("fsdp", 2, False),
    ("fsdp", 3, False),
    ("fsdp", 3, True),
    ("deepspeed", 1, False),
    ("deepspeed", 2, False),
    ("deepspeed", 3, False),
    ("deepspeed", 3, True),
)
_HEADINGS = (
    *("GPUs", "nodes", "batch", "GB", "compute ms", "sent ms", "exposed ms", "step ms"),
    *("images/s", "efficiency", "epoch", "GPU-hours", "most of it"),
)


@dataclass(frozen=True)
class Estimate:
    """An estimate of a run.

    Attributes:
        network: parameters, and of one image in training `flops` and `bytes` of memory traffic.
        gpus: number of GPUs that share the run in `memory`.
        memory: bytes of a GPU, by engine.
        recompute: the same of the run's own engine, without and with `speed.recompute`; empty for
            a network without transformer layers.
        fits: a sentence on whether the run fits the GPU, and what would help; None: no hardware.
        rows: by number of GPUs; empty without hardware.
    """

    network: dict[str, float]
    gpus: int
    memory: dict[str, Memory]
    recompute: dict[str, Memory]
    fits: str | None
    rows: list[Row]


def estimate(
    cfg: BaseRun,
    hardware: Hardware | None,
    counts: Sequence[int],
    gpus: int,
    per_node: int,
    samples: int | None,
) -> Estimate:
    """Estimate a run's memory and times.

    Args:
        cfg: the run's configuration.
        hardware: of the cluster; None if not known.
        counts: numbers of GPUs to estimate.
        gpus: number of GPUs that share the run in the table of memory.
        per_node: GPUs of a node.
        samples: images of an epoch; None if not known.

    Raises:
        UserError: as `scaling`.
    """
    network = network_of(cfg)
    cost = {"flops": train_flops(cfg) or 0.0, "bytes": train_bytes(cfg, gpus) or 0.0}
    return Estimate(
        {"parameters": network.parameters, **cost},
        gpus,
        _by_engine(cfg, gpus),
        _by_recompute(cfg, gpus) if network.entries else {},
        None if hardware is None else _fits(cfg, gpus, hardware),
        [] if hardware is None else scaling(cfg, hardware, counts, per_node, samples),
    )


def _by_engine(cfg: BaseRun, gpus: int) -> dict[str, Memory]:
    found = {}
    for engine, stage, offload in _ENGINES:
        changes = {"engine": engine, "shard.stage": stage, "shard.offload": offload}
        with suppress(ValueError):  # an engine may not support the run's settings
            other = with_settings(cfg, changes)
            found[_name(engine, stage, offload)] = memory(other, gpus, micros_of(cfg, gpus))
    return found


def _name(engine: str, stage: int, offload: bool) -> str:
    if engine == "ddp":
        return engine
    return f"{engine} {stage}{' offload' if offload else ''}"


def own_name(cfg: BaseRun) -> str:
    """Return the engine of a run, as the table names it."""
    return _name(cfg.engine, cfg.shard.stage, cfg.shard.offload)


def _by_recompute(cfg: BaseRun, gpus: int) -> dict[str, Memory]:
    return {
        name: memory(with_settings(cfg, {"speed.recompute": on}), gpus, micros_of(cfg, gpus))
        for name, on in (("without", False), ("with", True))
    }


def _fits(cfg: BaseRun, gpus: int, hardware: Hardware) -> str:
    room, micros = hardware.sheet.memory_gb, micros_of(cfg, gpus)
    held = memory(cfg, gpus, micros)
    needs = f"{_amount(held.total / 1e9)} of {room:g} GB"
    if held.fits(room):
        return f"fits: {needs}"
    helps = remedy(cfg, gpus, micros, room) or "no setting does; share it among more GPUs"
    return f"does not fit: {needs}, of which CUDA and NCCL need some; {helps}"


def as_json(found: Estimate, cfg: BaseRun, hardware: Hardware | None) -> dict[str, Any]:
    """Return everything, in bytes, seconds and operations."""
    given = None if hardware is None else {**hardware.model_dump(), **hardware.sheet._asdict()}
    rows = [
        {
            **asdict(row),
            "memory": {**asdict(row.memory), "total": row.memory.total},
            "step": {**asdict(row.step), "seconds": row.step.seconds, "limit": row.step.limit},
        }
        for row in found.rows
    ]
    return {
        "preset": cfg.preset,
        "task": cfg.task,
        "engine": own_name(cfg),
        "precision": cfg.precision,
        **asdict(found),
        "hardware": given,
        "memory": {k: {**asdict(m), "total": m.total} for k, m in found.memory.items()},
        "rows": rows,
    }


def shown(found: Estimate, cfg: BaseRun, hardware: Hardware | None) -> str:
    """Return the estimate as text."""
    network = found.network
    parts = [
        f"{cfg.task}/{cfg.preset}: {own_name(cfg)}, precision {cfg.precision}, "
        f"{cfg.train.global_batch} images a step in micro-batches of {_micro_batch(cfg)}",
        f"network: {network['parameters'] / 1e6:,.4g} M parameters; an image, forward and back: "
        f"{_amount(network['flops'] / 1e9)} GFLOP, {_amount(network['bytes'] / 1e6)} MB moved",
        _memory_table(found, cfg, hardware),
    ]
    if found.recompute:
        without, again = (found.recompute[key].activations / 1e9 for key in ("without", "with"))
        parts.append(
            f"activations: {_amount(without)} GB; {_amount(again)} GB with speed.recompute=true"
        )
    if hardware is None:
        parts.append(
            "time: not known without hardware; give --cluster FILE with `hardware:`, or name the "
            "GPU: cluster.hardware.gpu=H100 cluster.gpus_per_node=8"
        )
    else:
        parts += [str(found.fits), _time_table(found, cfg, hardware)]
    return "\n\n".join(parts)


def _memory_table(found: Estimate, cfg: BaseRun, hardware: Hardware | None) -> str:
    names = ("weights", "gradients", "moments", "average", "activations", "passing", "total")
    lines = [["engine", *names, *(["fits"] if hardware else [])]]
    for engine, held in found.memory.items():
        cells = [_amount(getattr(held, name) / 1e9) for name in names]
        if hardware is not None:
            cells.append("yes" if held.fits(hardware.sheet.memory_gb) else "no")
        lines.append([engine + (" *" if engine == own_name(cfg) else ""), *cells])
    many = f"{found.gpus} GPU{'s' if found.gpus > 1 else ''}"
    return f"memory of one of {many}, GB (* this run):\n{_columns(lines)}"


def _time_table(found: Estimate, cfg: BaseRun, hardware: Hardware) -> str:
    lines = [list(_HEADINGS)]
    for row in found.rows:
        ms = (row.step.compute + row.step.optimizer, row.step.sent, row.step.exposed)
        lines.append(
            [
                str(row.gpus),
                str(row.nodes),
                f"{row.batch:,}{'~' if row.weak else ''}",
                _amount(row.memory.total / 1e9)
                + ("" if row.memory.fits(hardware.sheet.memory_gb) else "!"),
                *(_amount(1e3 * value) for value in (*ms, row.step.seconds)),
                f"{row.images_s:,.0f}",
                f"{100 * row.efficiency:.0f} %",
                "-" if row.epoch_s is None else short(row.epoch_s),
                "-" if row.gpu_hours is None else _amount(row.gpu_hours),
                row.step.limit,
            ]
        )
    notes = [
        "On paper: the network, its optimizer and the links, and nothing else. "
        "sent: the links are busy; exposed: of that, while nothing is computed."
    ]
    if any(row.weak for row in found.rows):
        notes.append(
            f"~ so many GPUs cannot share the step's {_shared(cfg)} evenly: shown is a larger "
            "or smaller batch, whole micro-batches each (train.global_batch)."
        )
    if any(not row.memory.fits(hardware.sheet.memory_gb) for row in found.rows):
        notes.append("! does not fit the GPU.")
    return "\n".join([f"time on {hardware.name}:", _columns(lines), *notes])


def _micro_batch(cfg: BaseRun) -> str:
    if cfg.train.micro_batch == "auto":
        return f"{cfg.train.global_batch} over the number of GPUs (train.micro_batch: auto)"
    return str(cfg.train.micro_batch)


def _shared(cfg: BaseRun) -> str:
    if cfg.train.micro_batch == "auto":
        return f"{cfg.train.global_batch} images"
    micros = cfg.train.global_batch // cfg.train.micro_batch
    return f"{micros} micro-batch{'es' if micros > 1 else ''}"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = [cell[:1].isdigit() or cell == "-" for cell in rows[1]]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        ).rstrip()
        for row in rows
    )


def _amount(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.01 or not value else f"{value:.1g}"
