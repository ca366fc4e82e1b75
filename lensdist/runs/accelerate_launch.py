"""Adopt accelerate's settings, and refuse those that contradict the run (torch-free).

The launcher decides what the run's own files and command line leave out (`adopt`). Settings that
both have must be equal (`conflicts`): a difference would silently change the result of a step or
how processes share it.
"""

from __future__ import annotations

from importlib.util import find_spec
from operator import attrgetter
from typing import TypeVar

from pydantic import ValidationError

from lensdist.config.schema import BaseRun
from lensdist.runs.accelerate_settings import Settings, from_environment, from_file
from lensdist.utils.errors import UserError

__all__ = [
    "Settings",
    "adopt",
    "agreed",
    "conflicts",
    "from_environment",
    "from_file",
    "not_installed",
]

R = TypeVar("R", bound=BaseRun)

_OF_ENGINE = ("shard.stage", "shard.offload", "speed.recompute")
_HINTS = {
    "engine": " (--multi_gpu leaves it to the run)",
    "precision": " (the run's is enough)",
    "fsdp shard.stage": " (there it is fsdp_reshard_after_forward)",
    "fsdp shard.offload": " (there it is fsdp_offload_params)",
    "deepspeed shard.stage": " (there it is zero_stage)",
    "deepspeed shard.offload": " (there it is offload_optimizer_device)",
}


def agreed(cfg: R, settings: Settings) -> R:
    """Return the run with the launcher's settings.

    Raises:
        UserError: settings contradict the run, one line each, or its engine is not installed.
    """
    cfg = adopt(cfg, settings)
    found = [*conflicts(cfg, settings), *not_installed(cfg)]
    if found:
        raise UserError("\n".join(found))
    return cfg


def adopt(cfg: R, settings: Settings) -> R:
    """Return the run with the launcher's values of settings that the run's own files do not set.

    Those are `engine`, and `_OF_ENGINE` if the engines are the same.

    Raises:
        UserError: the run cannot have that engine.
    """
    theirs = settings.asked.get("engine")
    engine = cfg.engine if "engine" in cfg.model_fields_set else theirs
    if theirs is None or engine != theirs:
        return cfg
    data = cfg.model_dump(exclude_unset=True, round_trip=True) | {"engine": engine}
    for key in _OF_ENGINE:
        part, _, name = key.partition(".")
        if key in settings.asked:
            data.setdefault(part, {}).setdefault(name, settings.asked[key])
    try:
        return type(cfg).model_validate(data)
    except ValidationError as e:
        why = [str(one.get("ctx", {}).get("error", one["msg"])) for one in e.errors()]
        raise UserError(
            "\n".join(f"{settings.whose} asks for engine: {engine}, but {one}" for one in why)
        ) from e


def conflicts(cfg: BaseRun, settings: Settings) -> list[str]:
    """Return a sentence for each setting that the run, from `adopt`, and the launcher differ in."""
    whose, asked = settings.whose, settings.asked
    skip = () if asked.get("engine") == cfg.engine else _OF_ENGINE
    if cfg.train.micro_batch == "auto" and settings.processes is None:
        skip = (*skip, "train.micro_batch")  # each value is right for some number of processes
    found = [f"{whose} {one}" for one in settings.refused]
    for key, theirs in asked.items():
        ours = attrgetter(key)(cfg)
        if key == "train.micro_batch":
            ours = cfg.train.micro(settings.processes or 1)
        if key not in skip and theirs not in (ours or 0, str(ours)):  # no clipping is null, or 0
            hint = _HINTS.get(key, _HINTS.get(f"{cfg.engine} {key}", ""))
            found.append(
                f"{key}: the run's configuration sets {_shown(ours)} but {whose} sets "
                f"{_shown(theirs)}; change one of them{hint}"
            )
    if cfg.precision in settings.off or (cfg.precision == "fp8" and "bf16" in settings.off):
        found.append(
            f"precision: the run's configuration sets {cfg.precision!r} but {whose} switches it "
            "off; change one of them"
        )
    return found + _accumulation(cfg, settings)


def _accumulation(cfg: BaseRun, settings: Settings) -> list[str]:
    steps = settings.accumulation
    if steps is None:
        return []
    count = cfg.train.global_batch // cfg.train.micro(settings.processes or 1)
    number = int(steps) if steps.isdigit() else 0
    if settings.processes:
        fits = number * settings.processes == count
    else:
        fits = number > 0 and count % number == 0
    if settings.asked.get("engine") == "deepspeed" and fits:
        return []
    # accelerate itself would divide losses by the number.
    return [
        f"{settings.whose} sets gradient_accumulation_steps to {steps}; leave it at 1, or at auto "
        f"(the run's: {count} micro-batches a step over all processes, train.global_batch over "
        "train.micro_batch)"
    ]


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not value.isdigit():
        return repr(value)
    return str(value or "none")


def not_installed(cfg: BaseRun) -> list[str]:
    """Return a sentence if the run's engine is a package that is not installed."""
    if cfg.engine == "deepspeed" and find_spec("deepspeed") is None:
        return ["deepspeed is not installed; pip install deepspeed, or set engine=fsdp"]
    return []
