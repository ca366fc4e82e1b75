"""What accelerate's launcher asks of a run, and where that contradicts the run (torch-free).

Each of these would change what a step computes without a word in the run's own files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from lensdist.config.schema import BaseRun
from lensdist.errors import UserError

_ENGINES = ("DEEPSPEED", "FSDP", "MEGATRON_LM")
_NO_DDP = (*_ENGINES, "XLA", "TPU")


@dataclass(frozen=True)
class Settings:
    """What a launcher asks for.

    Attributes:
        whose: who asks, for a person to read.
        precision: as a run's `precision` has it.
        accumulation: steps of accelerate's own gradient accumulation.
        dynamo: backend of torch.compile.
        engines: what is to share the work in place of DDP.
    """

    whose: str
    precision: str = "no"
    accumulation: str = "1"
    dynamo: str = "no"
    engines: tuple[str, ...] = ()


def conflicts(cfg: BaseRun, settings: Settings) -> list[str]:
    """A sentence for each setting that would change what the run computes.

    Args:
        cfg: the run's.
        settings: from `from_environment` or `from_file`.
    """
    whose, found = settings.whose, []
    if settings.precision not in ("no", cfg.precision):
        found.append(
            f"precision: the run's configuration says {cfg.precision!r} but {whose} says "
            f"{settings.precision!r}; change one of them (the run's is enough)"
        )
    for name, asked, neutral in (
        ("gradient_accumulation_steps", settings.accumulation, "1"),
        ("dynamo_backend", settings.dynamo, "no"),
    ):
        if asked.lower() != neutral:
            found.append(
                f"{whose} sets {name} to {asked}; leave it at {neutral} (accumulation is "
                "train.global_batch over train.micro_batch)"
            )
    found += [
        f"{whose} asks for {engine} but the run's engine is {cfg.engine}; launch without it"
        for engine in settings.engines
    ]
    return found


def from_environment(environment: Mapping[str, str]) -> Settings:
    """What accelerate's launcher has put into a process's environment."""
    return Settings(
        "accelerate's launcher",
        environment.get("ACCELERATE_MIXED_PRECISION", "no"),
        environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"),
        environment.get("ACCELERATE_DYNAMO_BACKEND", "no"),
        tuple(e for e in _ENGINES if environment.get(f"ACCELERATE_USE_{e}", "").lower() == "true"),
    )


def from_file(path: Path) -> Settings:
    """What a file for `accelerate launch --config_file` would make of that environment.

    Raises:
        UserError: it cannot be read, or accelerate could not read it.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}; give accelerate's file of settings") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{path} is no YAML; `accelerate config` writes such a file") from e
    if not isinstance(data, dict) or "distributed_type" not in data:
        raise UserError(
            f"{path} has no distributed_type, without which accelerate refuses it; give "
            "accelerate's file of settings"
        )
    dynamo = data.get("dynamo_config") or {}
    backend = data.get("dynamo_backend", dynamo.get("dynamo_backend", dynamo.get("backend")))
    precision = data.get("mixed_precision", "fp16" if data.get("fp16") else None)
    for name, value in (("dynamo_backend", backend), ("mixed_precision", precision)):
        if value is False:
            raise UserError(
                f"{path}: {name}: YAML takes no without quotes for false, which accelerate falls "
                "over; write 'no'"
            )
    engine = str(data["distributed_type"])
    steps = data.get("gradient_accumulation_steps")
    if engine == "DEEPSPEED":  # only then does accelerate's launcher pass this on
        steps = steps or (data.get("deepspeed_config") or {}).get("gradient_accumulation_steps")
    return Settings(
        str(path),
        str(precision or "no").lower(),
        str(steps or 1),
        str(backend or "no"),
        (engine,) if engine in _NO_DDP else (),
    )
