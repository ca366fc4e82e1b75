"""Read the settings that accelerate's launcher gives a process (torch-free).

A file for `accelerate launch --config_file` is read as the environment variables that accelerate
makes of it (`accelerate/utils/launch.py`), and DeepSpeed's own JSON as the settings of that file.
So a setting means the same in the file, as a flag, as a variable and in the JSON. accelerate is not
imported: it imports torch, which a plan on a login node must not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lensdist.utils.errors import UserError
from lensdist.utils.sealed import read_json
from lensdist.utils.yaml_reader import read_plain

_TRUE = ("true", "yes", "y", "t", "on", "1")
_ELSEWHERE = {
    "ACCELERATE_USE_MEGATRON_LM": "MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
# Values that accelerate's launcher passes on if neither the file nor a flag sets them.
_FSDP = {
    "version": "1",
    "sharding_strategy": "FULL_SHARD",
    "reshard_after_forward": "true",
    "offload_params": "false",
    "activation_checkpointing": "false",
    "activation_checkpointing_offload": "false",
    "ignored_modules": "",
}
# FSDP2's values and FSDP1's, by name or by number, as `shard.stage`.
_STAGES = {
    **dict.fromkeys((*_TRUE, "full_shard"), 3),
    **dict.fromkeys(("false", "no", "n", "f", "off", "0", "shard_grad_op", "2"), 2),
}
# Settings of accelerate's `deepspeed_config`, and the variables that its launcher makes of them.
_DEEPSPEED = {
    "zero_stage": "ACCELERATE_DEEPSPEED_ZERO_STAGE",
    "offload_optimizer_device": "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
    "offload_param_device": "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE",
    "gradient_accumulation_steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "gradient_clipping": "ACCELERATE_GRADIENT_CLIPPING",
    "deepspeed_config_file": "ACCELERATE_DEEPSPEED_CONFIG_FILE",
}
# Keys of DeepSpeed's JSON that are compared with the run, by accelerate's names for them.
_JSON = {
    **{name: name for name in ("train_batch_size", "train_micro_batch_size_per_gpu")},
    **{name: name for name in ("gradient_accumulation_steps", "gradient_clipping")},
    "fp16.enabled": "fp16",
    "bf16.enabled": "bf16",
    "bfloat16.enabled": "bf16",
    "zero_optimization.stage": "zero_stage",
    "zero_optimization.offload_optimizer.device": "offload_optimizer_device",
    "zero_optimization.offload_param.device": "offload_param_device",
}
_BATCHES = {
    "train.global_batch": "train_batch_size",
    "train.micro_batch": "train_micro_batch_size_per_gpu",
}
# Keys of DeepSpeed's JSON that do not change what a step computes, except for `_COMPRESSES`.
_UNREAD = (
    "zero_optimization.", "fp16.", "activation_checkpointing.", "aio.", "checkpoint.", "comet.",
    "comms_logger.", "csv_monitor.", "flops_profiler.", "tensorboard.", "wandb.", "dump_state",
    "memory_breakdown", "steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
)  # fmt: skip
_COMPRESSES = "zero_optimization.zero_quantized_"


@dataclass(frozen=True)
class Settings:
    """The settings that a launcher asks for."""

    whose: str
    """The launcher or its file, as error messages name it."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """Values by the run's own keys; other keys are left to the run."""
    off: tuple[str, ...] = ()
    """Precisions that are switched off."""
    accumulation: str | None = None
    """Micro-batches of each process in a step, unless it is 1 or `auto`."""
    processes: int | None = None
    """Their number, if known."""
    unread: tuple[str, ...] = ()
    """Settings that change nothing here."""
    refused: tuple[str, ...] = ()
    """Settings that no run can have: the rest of a sentence that begins with `whose`."""


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Return the settings that accelerate's launcher has put into a process's environment.

    Raises:
        UserError: DeepSpeed's JSON, which it names, cannot be read.
    """
    return _settings("accelerate's launcher", environment, [])


def from_file(path: Path) -> Settings:
    """Return the settings of a file for `accelerate launch --config_file`.

    Raises:
        UserError: it cannot be read, or accelerate could not read it.
    """
    try:
        read_plain(path)  # for our limit on its size; accelerate reads it as YAML 1.1
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
    """Return those of the variables accelerate makes of its file that are read here."""
    parts = {}
    for name in ("dynamo", "fp8", "parallelism", "fsdp", "deepspeed"):
        parts[name] = data.get(f"{name}_config") or {}
        if not isinstance(parts[name], dict):
            raise UserError(
                f"{path}: {name}_config is not a mapping; `accelerate config` writes such a file"
            )
    dynamo, fp8 = parts["dynamo"], parts["fp8"]
    backend = data.get("dynamo_backend", dynamo.get("dynamo_backend", dynamo.get("backend")))
    precision = data.get("mixed_precision", "fp16" if data.get("fp16") else None)
    for name, value in (("dynamo_backend", backend), ("mixed_precision", precision)):
        if value is False:
            raise UserError(
                f"{path}: {name}: YAML reads no without quotes as false, with which accelerate "
                "fails; write 'no'"
            )
    made = {"ACCELERATE_MIXED_PRECISION": precision or "no", "ACCELERATE_DYNAMO_BACKEND": backend}
    if str(precision).lower() == "fp8":
        made["ACCELERATE_FP8_BACKEND"] = fp8.get("backend", fp8.get("fp8_backend"))
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        made[f"ACCELERATE_USE_{kind}"] = "true"
    if parts["parallelism"] and kind not in ("NO", "MULTI_CPU"):
        made["ACCELERATE_USE_PARALLELISM_CONFIG"] = "true"
    if kind == "FSDP":
        own = {str(key).removeprefix("fsdp_"): value for key, value in parts["fsdp"].items()}
        made |= {f"FSDP_{name.upper()}": own.get(name) for name in _FSDP}
    if kind == "DEEPSPEED":  # only then does accelerate's launcher pass these on
        made |= {name: parts["deepspeed"].get(key) for key, name in _DEEPSPEED.items()}
    return {name: str(value) for name, value in made.items() if value is not None}


def _settings(whose: str, variables: Mapping[str, str], refused: list[str]) -> Settings:
    """Return the settings of variables; append to `refused`, as the functions below do."""

    def on(name: str) -> bool:
        return variables.get(name, "").lower() in _TRUE

    refused += [_no_engine(what) for name, what in _ELSEWHERE.items() if on(name)]
    fsdp, deepspeed = on("ACCELERATE_USE_FSDP"), on("ACCELERATE_USE_DEEPSPEED")
    if fsdp and deepspeed:
        refused.append("asks for FSDP and for DeepSpeed; launch with one of them")
    if backend := variables.get("ACCELERATE_FP8_BACKEND"):
        refused.append(
            f"asks for the fp8 of {backend}; leave mixed_precision at no and set the run's "
            "precision: fp8, which needs no package"
        )
    dynamo = variables.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if dynamo != "no":
        refused.append(
            f"sets dynamo_backend to {dynamo}; leave it at no (compiling is the run's "
            "speed.compile)"
        )
    said = {k: variables[name].lower() for k, name in _DEEPSPEED.items() if name in variables}
    precisions = {variables.get("ACCELERATE_MIXED_PRECISION", "no").lower()} - {"no"}
    own: dict[str, str] = {}
    unread: tuple[str, ...] = ()
    asked: dict[str, Any] = {}
    if fsdp:
        asked = {"engine": "fsdp", **_fsdp(variables, refused)}
    elif deepspeed:
        if said.pop("deepspeed_config_file", "none") != "none":
            file = variables[_DEEPSPEED["deepspeed_config_file"]]
            whose = f"{whose} (with {file})"
            own, unread = _read_json(Path(file), refused)
            refused += [
                f"sets {name} {said[name]}, but {own[name]} in {file}; leave one out"
                for name in sorted(said.keys() & own.keys())
                if said[name] not in ("auto", own[name])
            ]
        said |= own
        asked = {"engine": "deepspeed", **_deepspeed(said, refused)}
        precisions |= {half for half in ("fp16", "bf16") if own.get(half) == "true"}
        if len(precisions) > 1:
            refused.append(f"asks for {' and for '.join(sorted(precisions))}; leave one out")
    if precisions:
        asked["precision"] = min(precisions)
    steps = said.get("gradient_accumulation_steps", "1")
    size = variables.get("WORLD_SIZE", "")
    return Settings(
        whose,
        asked,
        off=tuple(half for half in ("fp16", "bf16") if own.get(half, "true") != "true"),
        accumulation=None if steps in ("1", "auto") else steps,
        processes=int(size) if size.isdigit() else None,
        unread=unread,
        refused=tuple(refused),
    )


def _fsdp(variables: Mapping[str, str], refused: list[str]) -> dict[str, Any]:
    said = {k: variables.get(f"FSDP_{k.upper()}", value).lower() for k, value in _FSDP.items()}
    if said["version"] != "2":
        refused.append("asks for FSDP's version 1, accelerate's default; set fsdp_version: 2")
    sharding = said["reshard_after_forward"]
    if sharding in _TRUE:  # accelerate's default, also if only the older name was given
        sharding = said["sharding_strategy"]
    if sharding not in _STAGES:
        refused.append(
            f"asks for FSDP's {sharding.upper()}; set fsdp_reshard_after_forward to true, for "
            "shard.stage 3, or to false, for 2 (what NO_SHARD does is engine: ddp)"
        )
    for name in ("activation_checkpointing_offload", "ignored_modules"):
        if said[name] not in ("false", ""):
            refused.append(f"sets fsdp_{name}, which engine: fsdp does not have; leave it out")
    asked: dict[str, Any] = {"shard.offload": said["offload_params"] in _TRUE}
    if sharding in _STAGES:
        asked["shard.stage"] = _STAGES[sharding]
    if said["activation_checkpointing"] in _TRUE:  # accelerate passes on false by default
        asked["speed.recompute"] = True
    return asked


def _deepspeed(said: Mapping[str, str], refused: list[str]) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    stage, clip = said.get("zero_stage", "auto"), said.get("gradient_clipping", "auto")
    devices = {said.get(f"offload_{part}_device", "auto") for part in ("optimizer", "param")}
    if stage in ("1", "2", "3"):
        asked["shard.stage"] = int(stage)
    elif stage == "0":
        refused.append("asks for ZeRO's stage 0, which is engine: ddp; launch without DeepSpeed")
    elif stage != "auto":
        refused.append(f"asks for ZeRO's stage {stage}; there are 1, 2 and 3")
    for device in sorted(devices - {"cpu", "none", "auto"}):
        refused.append(f"offloads to {device}; use cpu, which is shard.offload")
    if devices != {"auto"}:
        asked["shard.offload"] = "cpu" in devices
    try:
        if clip not in ("auto", "none"):
            asked["optim.clip_norm"] = float(clip)
    except ValueError:
        refused.append(f"sets gradient_clipping to {clip}; give a number")
    for key, name in _BATCHES.items():
        if name in said:
            asked[key] = said[name]
    return asked


def _read_json(path: Path, refused: list[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return DeepSpeed's JSON by the names in `_JSON`, in lower case, and the keys left unread."""
    try:
        data = read_json(path)
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else f"not JSON ({e})"
        raise UserError(f"{path}: {why}; give DeepSpeed's file of settings") from e
    for part in ("optimizer", "scheduler"):
        if data.pop(part, None) is not None:
            refused.append(f"has a block {part!r}, which is the run's optim; take it out")
    said, unread = {"zero_stage": "0"}, []  # DeepSpeed's own default
    for key, value in _leaves(data):
        text = str(value).lower()
        if key in _JSON:
            said[_JSON[key]] = text
        elif text in ("false", "none"):
            pass
        elif key.startswith(_UNREAD) and not key.startswith(_COMPRESSES):
            unread.append(key)
        else:
            refused.append(f"sets {key}, which no engine here reads; take it out")
    return {name: text for name, text in said.items() if text != "auto"}, tuple(unread)


def _leaves(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value with its dotted key."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _no_engine(what: str) -> str:
    return f"asks for {what}, but a run's engines are ddp, fsdp and deepspeed; launch without it"
