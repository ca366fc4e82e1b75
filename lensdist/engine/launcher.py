"""A run and the launcher that starts it say one thing, or nothing starts (torch-free).

What the run's own files and command line leave out, the launcher decides: `adopt`. What both say
must be the same: `conflicts`. Each difference would change, without a word, what a step computes or
how processes share it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, TypeVar

from pydantic import ValidationError

from lensdist.config.schema import BaseRun
from lensdist.engine.launcher_settings import Settings, from_environment, from_file
from lensdist.errors import UserError

__all__ = [
    "ANSWERED",
    "Settings",
    "adopt",
    "agreed",
    "conflicts",
    "from_environment",
    "from_file",
    "not_installed",
]

R = TypeVar("R", bound=BaseRun)

ANSWERED = (
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
)
"""Variables whose wishes a run has taken over; accelerate itself is not to see them."""

# What accelerate calls the stage, and offloading.
_THERE = {
    "fsdp": ("fsdp_reshard_after_forward", "fsdp_offload_params"),
    "deepspeed": ("zero_stage", "offload_optimizer_device"),
}


def agreed(cfg: R, settings: Settings) -> R:
    """The run as it is to be trained under a launcher.

    Raises:
        UserError: all that contradicts the run, a line each, or its engine is not installed.
    """
    cfg = adopt(cfg, settings)
    told = [*conflicts(cfg, settings), *not_installed(cfg)]
    if told:
        raise UserError("\n".join(told))
    return cfg


def adopt(cfg: R, settings: Settings) -> R:
    """The run, with what the launcher says of settings that the run's own files do not set.

    Those are `engine`, and where the engines are the same `shard.stage`, `shard.offload` and
    `speed.recompute`.

    Raises:
        UserError: the run cannot have that engine.
    """
    engine = cfg.engine if "engine" in cfg.model_fields_set else settings.engine
    if settings.engine is None or engine != settings.engine:
        return cfg
    data = cfg.model_dump(exclude_unset=True, round_trip=True)
    data["engine"] = engine
    for part, said in (
        ("shard", {"stage": settings.stage, "offload": settings.offload}),
        ("speed", {"recompute": settings.recompute}),
    ):
        known = {key: value for key, value in said.items() if value is not None}
        data[part] = known | data.get(part, {})
    try:
        return type(cfg).model_validate(data)
    except ValidationError as e:
        why = [str(one.get("ctx", {}).get("error", one["msg"])) for one in e.errors()]
        raise UserError(
            "\n".join(f"{settings.whose} asks for engine: {engine}, but {one}" for one in why)
        ) from e


def conflicts(cfg: BaseRun, settings: Settings) -> list[str]:
    """A sentence for each thing of which the run and the launcher say something else.

    Args:
        cfg: the run's, as `adopt` has returned it.
        settings: from `from_environment` or `from_file`.
    """
    whose = settings.whose
    found = [f"{whose} {one}" for one in settings.refused]
    precision = None if settings.precision == "no" else settings.precision
    pairs: list[tuple[str, Any, Any, str]] = [
        ("engine", cfg.engine, settings.engine, " (--multi_gpu leaves it to the run)"),
        ("precision", cfg.precision, precision, " (the run's is enough)"),
        ("optim.clip_norm", cfg.optim.clip_norm or 0.0, settings.clip, ""),
        ("train.global_batch", str(cfg.train.global_batch), settings.batch, ""),
        ("train.micro_batch", _micro(cfg, settings), settings.micro, ""),
    ]
    if settings.engine == cfg.engine:
        stage, offload = _THERE[settings.engine]
        pairs += [
            ("shard.stage", cfg.shard.stage, settings.stage, f" (there it is {stage})"),
            ("shard.offload", cfg.shard.offload, settings.offload, f" (there it is {offload})"),
            ("speed.recompute", cfg.speed.recompute, settings.recompute, ""),
        ]
    found += [
        f"{key}: the run's configuration says {_word(ours)} but {whose} says {_word(theirs)}; "
        f"change one of them{hint}"
        for key, ours, theirs, hint in pairs
        if theirs not in (None, ours)
    ]
    if cfg.precision in settings.off or (cfg.precision == "fp8" and "bf16" in settings.off):
        found.append(
            f"precision: the run's configuration says {cfg.precision!r} but {whose} switches it "
            "off; change one of them"
        )
    if settings.dynamo != "no":
        found.append(
            f"{whose} sets dynamo_backend to {settings.dynamo}; leave it at no (compiling is the "
            "run's speed.compile)"
        )
    return found + _accumulation(cfg, settings)


def _micro(cfg: BaseRun, settings: Settings) -> str | None:
    if cfg.train.micro_batch == "auto" and settings.processes is None:
        return settings.micro  # some number of processes makes it so
    return str(cfg.train.micro(settings.processes or 1))


def _accumulation(cfg: BaseRun, settings: Settings) -> list[str]:
    asked = settings.accumulation
    if asked is None:
        return []
    each = cfg.train.micro(settings.processes or 1)
    whole = cfg.train.global_batch // each
    number = int(asked) if asked.isdigit() else 0
    if settings.processes:
        fits = number * settings.processes == whole
    else:
        fits = number > 0 and whole % number == 0
    if settings.engine == "deepspeed" and fits:
        return []
    # By accelerate's own, losses would be divided.
    return [
        f"{settings.whose} sets gradient_accumulation_steps to {asked}; leave it at 1, or at auto "
        f"(the run's: {whole} micro-batches a step over all processes, train.global_batch over "
        "train.micro_batch)"
    ]


def _word(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not value.isdigit():
        return repr(value)
    return str(value or "none")


def not_installed(cfg: BaseRun) -> list[str]:
    """A sentence, where the run's engine is a package that is not there."""
    if cfg.engine == "deepspeed" and find_spec("deepspeed") is None:
        return ["deepspeed is not installed; pip install deepspeed, or set engine=fsdp"]
    return []
