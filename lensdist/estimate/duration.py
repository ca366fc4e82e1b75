"""Estimate how long a run takes on a CPU, and find a preset that takes less (torch-free)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lensdist.config import load
from lensdist.config.schema import BaseRun, recorded_schema
from lensdist.data.epoch_size import images_per_epoch
from lensdist.estimate.network import train_flops
from lensdist.utils.errors import UserError

LONG = 3600.0
"""Seconds; a run that takes longer is announced."""
_FEW = 500  # for fewer images a network is not traced
_MARGIN = 3  # a preset called quick must be so even if the estimate is wrong by this factor
_SHARE = 0.4  # convolutions and small layers reach this share of the rate of matrix products
_FITS = 25  # smooth lenses fitted per second and core (`preprocess.scale: lens_fit`)


def operations(cfg: BaseRun, done: int = 0) -> float | None:
    """Return the floating-point operations of a run's steps, from the `done`-th on.

    Returns:
        None if the network or the images are not known, or the images are few.
    """
    samples, batch = _samples(cfg), cfg.train.global_batch
    if samples is None:
        return None
    steps = cfg.train.max_steps or cfg.train.epochs * (samples // batch)
    images = max(steps - done, 0) * batch
    flops = train_flops(cfg) if images > _FEW else None
    return None if flops is None else flops * images


def seconds(cfg: BaseRun, rate: float, done: int = 0) -> float | None:
    """Return the seconds of these operations if matrix products do `rate` operations per second.

    Returns:
        None as `operations`.
    """
    found = operations(cfg, done)
    if found is None:
        return None
    fits = (_samples(cfg) or 0) / _FITS if cfg.preprocess.scale == "lens_fit" else 0.0
    return found / (_SHARE * rate) + fits


def warning(cfg: BaseRun, rate: float, done: int, presets: Path) -> str | None:
    """Return a sentence if a run takes more than an hour, with a preset that takes less.

    Args:
        cfg: the run's configuration.
        rate: operations per second of matrix products.
        done: steps of the run already done.
        presets: folder of the task's configurations; it need not exist.
    """
    takes = seconds(cfg, rate, done)
    if takes is None or takes <= LONG:
        return None
    fits = max(_quick(cfg, rate, presets), default=None)
    advice = f"; {fits[1]} takes about {words(fits[0])}" if fits else ""
    return f"this run takes about {words(takes)} on this CPU{advice}"


def _quick(cfg: BaseRun, rate: float, presets: Path) -> Iterator[tuple[float, Path]]:
    """Yield presets for the same images that take far less than an hour, after their seconds."""
    path = [f"data.path={cfg.data.path}"] if cfg.data.path else []
    for file in presets.glob("*.yaml"):
        with suppress(UserError):
            other = load(file, path, schema=recorded_schema)
            takes = seconds(other, rate) if _suits(other, cfg) else None
            if takes is not None and takes <= LONG / _MARGIN:
                yield takes, file


def _suits(other: BaseRun, cfg: BaseRun) -> bool:
    """Return whether a preset takes the run's images, and has its encoder, if it needs one."""
    encoder = getattr(other, "encoder", None)
    sees = [(one.model.in_channels, one.model.image_size) for one in (other, cfg)]  # type: ignore[attr-defined]
    return sees[0] == sees[1] and (encoder is None or encoder.exists())


def _samples(cfg: BaseRun) -> int | None:
    with suppress(UserError):
        return images_per_epoch(cfg.data, cfg.run.dir)
    return None


def words(seconds: float) -> str:
    """Return a rough length of time, such as `13 days`."""
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.0f} {name}s"
    return "a minute"


def short(seconds: float) -> str:
    """Return a length of time for a table, such as `3:20 h`."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"
