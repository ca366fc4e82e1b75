"""Estimate the presets' sizes and times, for `lensdist presets` (torch-free)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lensdist.config import load
from lensdist.config.presets import preset_file
from lensdist.config.schema import BaseRun, recorded_schema
from lensdist.data.epoch_size import images_per_epoch
from lensdist.estimate.duration import LONG, seconds, words
from lensdist.estimate.hardware import Hardware
from lensdist.estimate.network import network_of, prepare
from lensdist.estimate.scaling import scaling
from lensdist.utils.errors import UserError

GPU = "H100"
CPU_RATE = 1e11
"""Operations per second of the CPU that times are given for: two cores of 50 GFLOP/s."""
_OWN_DATA = 30_000
"""Images of an epoch for a preset that names no data."""
_LONGEST = 60  # characters of a preset's description


@dataclass(frozen=True)
class Facts:
    """A preset's row in a table; an empty text if something is not known."""

    name: str
    parameters: str
    images: str
    """Number of images to train on, over all epochs."""
    device: str
    time: str
    about: str


def facts(names: Sequence[str]) -> Iterator[Facts]:
    """Yield the facts of presets; the first time, networks are traced, which takes a minute."""
    runs = {name: _load(name) for name in names}
    prepare(list(runs.values()))
    for name, cfg in runs.items():
        samples = images_per_epoch(cfg.data, cfg.run.dir) or _OWN_DATA
        steps = cfg.train.max_steps or cfg.train.epochs * (samples // cfg.train.global_batch)
        parameters, device, time = "", "", ""
        with suppress(UserError):
            parameters = _amount(network_of(cfg).parameters)
            device, time = _time(cfg, samples)
        images = _amount(steps * cfg.train.global_batch)
        yield Facts(name, parameters, images, device, time, _about(preset_file(name)))


def _load(name: str) -> BaseRun:
    file = preset_file(name)
    try:
        return load(file, schema=recorded_schema)
    except UserError:  # it needs data of the user's
        return load(file, ["data.path=PACKED"], schema=recorded_schema)


def _time(cfg: BaseRun, samples: int) -> tuple[str, str]:
    """Return the smallest device that trains the preset within an hour, or a GPU; and the time."""
    on_cpu = seconds(cfg, CPU_RATE)
    if on_cpu is None and cfg.preset == "debug":
        return "CPU", "a minute"
    if on_cpu is not None and on_cpu <= LONG:
        return "CPU", words(on_cpu)
    row = scaling(cfg, Hardware(gpu=GPU), [1], 1, samples)[0]
    return GPU, "" if row.gpu_hours is None else words(3600 * row.gpu_hours)


def _about(file: Path) -> str:
    """Return the first sentence of a preset's comment."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    sentence = " ".join(lines).partition(". ")[0].rstrip(".:")
    return sentence if len(sentence) <= _LONGEST else sentence[:_LONGEST].rsplit(" ", 1)[0] + " …"


def _amount(count: float) -> str:
    for name, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count:g}"
