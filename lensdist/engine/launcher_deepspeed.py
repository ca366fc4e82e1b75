"""What accelerate's launcher, and a file of DeepSpeed's own, ask of DeepSpeed (torch-free).

The run's configuration decides what a step computes. So what the file says of that is compared with
it, what no engine here would read is refused, and what only makes DeepSpeed faster is left unread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lensdist.errors import UserError
from lensdist.sealed import read_json

VARIABLES = {
    "zero_stage": "ACCELERATE_DEEPSPEED_ZERO_STAGE",
    "offload_optimizer_device": "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
    "offload_param_device": "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE",
    "gradient_accumulation_steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "gradient_clipping": "ACCELERATE_GRADIENT_CLIPPING",
    "deepspeed_config_file": "ACCELERATE_DEEPSPEED_CONFIG_FILE",
}
"""Settings of accelerate's, and the variables by which its launcher passes them on."""

# In DeepSpeed's file, and what accelerate calls it where it has a name of its own.
_SAYS = {
    "train_batch_size": "batch",
    "train_micro_batch_size_per_gpu": "micro",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "gradient_clipping",
    "fp16.enabled": "fp16",
    "bf16.enabled": "bf16",
    "bfloat16.enabled": "bf16",
    "zero_optimization.stage": "zero_stage",
    "zero_optimization.offload_optimizer.device": "offload_optimizer_device",
    "zero_optimization.offload_param.device": "offload_param_device",
}
# None of these changes what a step computes.
_IDLE = (
    "zero_optimization.", "fp16.", "activation_checkpointing.", "aio.", "checkpoint.", "comet.",
    "comms_logger.", "csv_monitor.", "flops_profiler.", "tensorboard.", "wandb.", "dump_state",
    "memory_breakdown", "steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
)  # fmt: skip
_COMPRESSES = "zero_optimization.zero_quantized_"


def asked_of(
    variables: Mapping[str, str], common: Mapping[str, Any], refused: list[str]
) -> dict[str, Any]:
    """Attributes of `Settings`.

    Args:
        variables: of a process, as accelerate's launcher makes them.
        common: attributes that do not depend on DeepSpeed.
        refused: what no run can have is added to it.

    Raises:
        UserError: DeepSpeed's own file cannot be read.
    """
    said = {key: variables[name].lower() for key, name in VARIABLES.items() if name in variables}
    asked: dict[str, Any] = {}
    file = variables.get(VARIABLES["deepspeed_config_file"], "none")
    if file != "none":
        own, unread = _read(Path(file), refused)
        refused += [
            f"says {name} {said[name]}, and {own[name]} in {file}; leave one out"
            for name in sorted(said.keys() & own.keys())
            if said[name] not in ("auto", own[name])
        ]
        said |= own
        steps = own.get("gradient_accumulation_steps", common["accumulation"])
        asked = {"whose": f"{common['whose']} (with {file})", "unread": unread}
        asked |= {"batch": own.get("batch"), "micro": own.get("micro"), "accumulation": steps}
        asked |= _precision(common["precision"], own, refused)
    return asked | {
        "stage": _stage(said.get("zero_stage", "auto"), refused),
        "offload": _offload(said, refused),
        "clip": _clip(said.get("gradient_clipping", "auto"), refused),
    }


def _stage(said: str, refused: list[str]) -> int | None:
    if said in ("1", "2", "3"):
        return int(said)
    if said == "0":
        refused.append("asks for ZeRO's stage 0, which is engine: ddp; launch without DeepSpeed")
    elif said != "auto":
        refused.append(f"asks for ZeRO's stage {said}; there are 1, 2 and 3")
    return None


def _offload(said: Mapping[str, str], refused: list[str]) -> bool | None:
    devices = {said.get(f"offload_{what}_device", "auto") for what in ("optimizer", "param")}
    for device in sorted(devices - {"cpu", "none", "auto"}):
        refused.append(f"offloads to {device}; there is cpu alone, which is shard.offload")
    return None if devices == {"auto"} else "cpu" in devices


def _clip(said: str, refused: list[str]) -> float | None:
    try:
        return None if said in ("auto", "none") else float(said)
    except ValueError:
        refused.append(f"sets gradient_clipping to {said}; give a number")
        return None


def _precision(common: str, own: Mapping[str, str], refused: list[str]) -> dict[str, Any]:
    halves = {name: own[name] == "true" for name in ("fp16", "bf16") if name in own}
    on = {name for name, wanted in halves.items() if wanted} | ({common} - {"no"})
    if len(on) > 1:
        refused.append(f"asks for {' and for '.join(sorted(on))}; leave one out")
    off = tuple(name for name, wanted in halves.items() if not wanted)
    return {"precision": min(on, default="no"), "off": off}


def _read(path: Path, refused: list[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """What the file says, in small letters and never "auto"; and what is left unread."""
    try:
        data = read_json(path)
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}; give DeepSpeed's file of settings") from e
    except ValueError as e:
        raise UserError(f"{path} is no JSON ({e}); give DeepSpeed's file of settings") from e
    for part in ("optimizer", "scheduler"):
        if data.pop(part, None) is not None:
            refused.append(f"has a block {part!r}, which is the run's optim; take it out")
    # DeepSpeed's own default, where accelerate would refuse the file.
    says, unread = {"zero_stage": "0"}, []
    for key, value in _leaves(data):
        text = str(value).lower()
        if key in _SAYS:
            says[_SAYS[key]] = text
        elif text in ("false", "none"):
            continue
        elif key.startswith(_IDLE) and not key.startswith(_COMPRESSES):
            unread.append(key)
        else:
            refused.append(f"sets {key}, which no engine here reads; take it out")
    return {key: text for key, text in says.items() if text != "auto"}, tuple(unread)


def _leaves(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted key."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
