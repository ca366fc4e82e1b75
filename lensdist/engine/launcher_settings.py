"""What accelerate's launcher was told, as a process finds it in its environment (torch-free).

A file for `accelerate launch --config_file` is read as the variables that accelerate makes of it
(`accelerate/utils/launch.py`), so that the file, flags and variables all mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lensdist.config.reader import read_plain
from lensdist.engine import launcher_deepspeed as deepspeed
from lensdist.errors import UserError

# FSDP2's words and FSDP's own, by name or by number.
_STAGES = {
    **dict.fromkeys(("true", "yes", "y", "t", "on", "full_shard", "1"), 3),
    **dict.fromkeys(("false", "no", "n", "f", "off", "0", "shard_grad_op", "2"), 2),
}
_TRUE = ("true", "yes", "y", "t", "on", "1")
_ELSEWHERE = {
    "ACCELERATE_USE_MEGATRON_LM": "MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
# What accelerate's launcher passes on where neither the file nor a flag says anything.
_FSDP = {
    "version": "1",
    "sharding_strategy": "FULL_SHARD",
    "reshard_after_forward": "true",
    "offload_params": "false",
    "activation_checkpointing": "false",
    "activation_checkpointing_offload": "false",
}


@dataclass(frozen=True)
class Settings:
    """What a launcher asks for; None, or the default, where it leaves that to the run.

    Attributes:
        whose: who asks, for a person to read.
        engine: what is to share the work.
        stage: of `shard`.
        offload: of `shard`.
        recompute: of `speed`.
        precision: as a run's `precision` has it; "no" says nothing.
        off: precisions that are not to be used.
        accumulation: micro-batches of each process in a step.
        batch: images of a step, over all processes.
        micro: images of a forward pass.
        clip: largest norm of the gradient; 0: none.
        dynamo: backend of torch.compile; "no" says nothing.
        processes: how many there are, where that is known.
        unread: settings that change nothing here, whatever they say.
        refused: what no run can have: the rest of a sentence that begins with `whose`.
    """

    whose: str
    engine: Literal["fsdp", "deepspeed"] | None = None
    stage: int | None = None
    offload: bool | None = None
    recompute: bool | None = None
    precision: str = "no"
    off: tuple[str, ...] = ()
    accumulation: str | None = None
    batch: str | None = None
    micro: str | None = None
    clip: float | None = None
    dynamo: str = "no"
    processes: int | None = None
    unread: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def from_environment(environment: Mapping[str, str]) -> Settings:
    """What accelerate's launcher has put into a process's environment.

    Raises:
        UserError: DeepSpeed's own file, which it names, cannot be read.
    """
    return _settings("accelerate's launcher", environment, [])


def from_file(path: Path) -> Settings:
    """What a file for `accelerate launch --config_file` would make of that environment.

    Raises:
        UserError: it cannot be read, or accelerate could not read it.
    """
    try:
        read_plain(path)  # its bounds are ours; its words are YAML 1.1's, as accelerate takes them
        data = yaml.safe_load(path.read_text())
    except (OSError, UserError, ValueError, yaml.YAMLError) as e:
        raise UserError(f"{e}; give a file of settings as `accelerate config` writes it") from e
    if not isinstance(data, dict) or "distributed_type" not in data:
        raise UserError(
            f"{path} has no distributed_type, without which accelerate refuses it; give "
            "accelerate's file of settings"
        )
    kind = str(data["distributed_type"])
    refused = [_no_engine(kind)] if kind in ("XLA", "TPU") else []
    if str(data.get("compute_environment") or "LOCAL_MACHINE") != "LOCAL_MACHINE":
        refused.append(_no_engine("SageMaker"))
    return _settings(str(path), _variables(path, kind, data), refused)


def _variables(path: Path, kind: str, data: dict[str, Any]) -> dict[str, str]:
    """The variables that accelerate makes of its file, of those that are read here."""
    dynamo = _part(path, data, "dynamo_config")
    backend = data.get("dynamo_backend", dynamo.get("dynamo_backend", dynamo.get("backend")))
    precision = data.get("mixed_precision", "fp16" if data.get("fp16") else None)
    for name, value in (("dynamo_backend", backend), ("mixed_precision", precision)):
        if value is False:
            raise UserError(
                f"{path}: {name}: YAML takes no without quotes for false, which accelerate falls "
                "over; write 'no'"
            )
    made = {
        "ACCELERATE_MIXED_PRECISION": str(precision or "no").lower(),
        "ACCELERATE_DYNAMO_BACKEND": str(backend or "no"),
    }
    fp8 = _part(path, data, "fp8_config")
    backend = fp8.get("backend", fp8.get("fp8_backend"))
    if backend and made["ACCELERATE_MIXED_PRECISION"] == "fp8":
        made["ACCELERATE_FP8_BACKEND"] = str(backend)
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        made[f"ACCELERATE_USE_{kind}"] = "true"
    if _part(path, data, "parallelism_config") and kind not in ("NO", "MULTI_CPU"):
        made["ACCELERATE_USE_PARALLELISM_CONFIG"] = "true"
    if kind == "FSDP":
        own = _part(path, data, "fsdp_config")
        asked = _FSDP | {str(key).removeprefix("fsdp_"): value for key, value in own.items()}
        kept = (*_FSDP, "ignored_modules")
        made |= {f"FSDP_{k.upper()}": str(asked[k]) for k in kept if asked.get(k) is not None}
    if kind == "DEEPSPEED":  # only then does accelerate's launcher pass these on
        own = _part(path, data, "deepspeed_config")
        names = deepspeed.VARIABLES.items()
        made |= {name: str(own[k]) for k, name in names if own.get(k) is not None}
    return made


def _part(path: Path, data: dict[str, Any], name: str) -> dict[str, Any]:
    part = data.get(name) or {}
    if not isinstance(part, dict):
        raise UserError(f"{path}: {name} is no mapping; `accelerate config` writes such a file")
    return part


def _settings(whose: str, variables: Mapping[str, str], refused: list[str]) -> Settings:
    """Here and below, sentences are added to `refused`."""
    refused += [_no_engine(what) for name, what in _ELSEWHERE.items() if _on(variables, name)]
    fsdp, zero = (_on(variables, f"ACCELERATE_USE_{e}") for e in ("FSDP", "DEEPSPEED"))
    if fsdp and zero:
        refused.append("asks for FSDP and for DeepSpeed; launch with one of them")
    backend = variables.get("ACCELERATE_FP8_BACKEND")
    if backend:
        refused.append(
            f"asks for the fp8 of {backend}; leave mixed_precision at no and set the run's "
            "precision: fp8, which needs no package"
        )
    steps = variables.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1").lower()
    world = variables.get("WORLD_SIZE", "")
    asked: dict[str, Any] = {
        "whose": whose,
        "precision": variables.get("ACCELERATE_MIXED_PRECISION", "no").lower(),
        "accumulation": None if steps in ("1", "auto") else steps,
        "dynamo": variables.get("ACCELERATE_DYNAMO_BACKEND", "no").lower(),
        "processes": int(world) if world.isdigit() else None,
    }
    if fsdp:
        asked |= {"engine": "fsdp"} | _of_fsdp(variables, refused)
    elif zero:
        asked |= {"engine": "deepspeed"} | deepspeed.asked_of(variables, asked, refused)
    return Settings(**asked, refused=tuple(refused))


def _of_fsdp(variables: Mapping[str, str], refused: list[str]) -> dict[str, Any]:
    asked = {k: variables.get(f"FSDP_{k.upper()}", value).lower() for k, value in _FSDP.items()}
    if asked["version"] != "2":
        refused.append("asks for FSDP's version 1, accelerate's default; set fsdp_version: 2")
    sharding = asked["reshard_after_forward"]
    if sharding in _TRUE:  # as it is, too, where only the older name was given
        sharding = asked["sharding_strategy"]
    if sharding not in _STAGES:
        refused.append(
            f"asks for FSDP's {sharding.upper()}; set fsdp_reshard_after_forward to true, for "
            "shard.stage 3, or to false, for 2 (what NO_SHARD does is engine: ddp)"
        )
    for name in ("activation_checkpointing_offload", "ignored_modules"):
        if variables.get(f"FSDP_{name.upper()}", "false").lower() not in ("false", ""):
            refused.append(f"sets fsdp_{name}, which engine: fsdp does not have; leave it out")
    return {
        "stage": _STAGES.get(sharding),
        "offload": asked["offload_params"] in _TRUE,
        # False is what accelerate passes on where nobody has said anything.
        "recompute": asked["activation_checkpointing"] in _TRUE or None,
    }


def _no_engine(what: str) -> str:
    return f"asks for {what}, but a run's engines are ddp, fsdp and deepspeed; launch without it"


def _on(variables: Mapping[str, str], name: str) -> bool:
    return variables.get(name, "").lower() in _TRUE
