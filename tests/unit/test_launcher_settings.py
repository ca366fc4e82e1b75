"""What accelerate's files, flags and variables ask for: the same, however it is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lensdist.runs.accelerate_launch import Settings, from_environment, from_file
from lensdist.utils.errors import UserError
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

OURS = ROOT / "accelerate_config.yaml"
READY = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


def written(folder: Path, **changes: Any) -> Path:
    """Our file of settings, changed; None takes a setting out."""
    data = {**yaml.safe_load(OURS.read_text()), **changes}
    file = folder / "accelerate.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
    return file


def launched(file: Path, *flags: str) -> dict[str, str]:
    """The environment that accelerate's own launcher makes of a file, and of flags."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import launch

    words = ["--config_file", str(file), "--main_process_port", "0", *flags, "x.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""
        return dict(launch.prepare_deepspeed_cmd_env(args)[1])
    if args.use_fsdp or args.use_megatron_lm or args.multi_gpu:
        return dict(launch.prepare_multi_gpu_env(args))
    return dict(launch.prepare_simple_launcher_cmd_env(args)[1])


def fsdp(**more: Any) -> dict[str, Any]:
    return {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2, **more}}


def deepspeed(**more: Any) -> dict[str, Any]:
    return {"distributed_type": "DEEPSPEED", "deepspeed_config": more}


def shard(engine: str, stage: int, offload: bool) -> dict[str, Any]:
    return {"engine": engine, "shard.stage": stage, "shard.offload": offload}


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({}, {}),
        ({"mixed_precision": "BF16"}, {"precision": "bf16"}),
        ({"mixed_precision": "fp8"}, {"precision": "fp8"}),
        ({"mixed_precision": None}, {}),
        ({"mixed_precision": None, "fp16": True}, {"precision": "fp16"}),
        ({"dynamo_config": {"backend": "EAGER"}}, {}),  # the older key wins
        ({"distributed_type": "MULTI_GPU", "num_processes": 2}, {}),
        ({"fsdp_config": {"fsdp_version": 1}}, {}),  # not in use, as below
        ({"fp8_config": {"backend": "TE"}}, {}),
        ({"parallelism_config": {"parallelism_config_tp_size": 2}}, {}),
        (fsdp(), shard("fsdp", 3, False)),
        (fsdp(reshard_after_forward=False), shard("fsdp", 2, False)),
        (
            fsdp(fsdp_sharding_strategy="SHARD_GRAD_OP", fsdp_offload_params=True),
            shard("fsdp", 2, True),
        ),
        (
            fsdp(fsdp_activation_checkpointing=True),
            shard("fsdp", 3, False) | {"speed.recompute": True},
        ),
        (deepspeed(), {"engine": "deepspeed"}),
        (
            deepspeed(zero_stage=1, offload_optimizer_device="none", gradient_clipping=0.5),
            shard("deepspeed", 1, False) | {"optim.clip_norm": 0.5},
        ),
        (
            deepspeed(zero_stage=3, offload_param_device="cpu", gradient_accumulation_steps=4),
            shard("deepspeed", 3, True) | {"accumulation": "4"},
        ),
        (deepspeed(gradient_accumulation_steps="auto"), {"engine": "deepspeed"}),
        ({"deepspeed_config": {"gradient_accumulation_steps": 4}}, {}),  # not in use
    ],
)
def test_a_file_means_what_accelerate_makes_of_it(
    changes: dict[str, Any], asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.utils.launch.is_fp8_available", lambda: True)
    file = written(tmp_path, **changes)
    found = from_file(file)
    steps = asked.pop("accumulation", None)
    assert found == Settings(str(file), asked, accumulation=steps)
    assert replace(found, whose="") == replace(from_environment(launched(file)), whose="")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dynamo_backend": "INDUCTOR"}, "dynamo_backend to inductor"),
        ({"dynamo_backend": None, "dynamo_config": {"dynamo_backend": "EAGER"}}, "to eager"),
        ({"dynamo_backend": None, "dynamo_config": {"backend": "EAGER"}}, "to eager"),
        ({"distributed_type": "FSDP"}, "fsdp_version: 2"),
        (fsdp(fsdp_sharding_strategy="HYBRID_SHARD"), "HYBRID_SHARD"),
        (fsdp(fsdp_sharding_strategy="NO_SHARD"), "engine: ddp"),
        (fsdp(ignored_modules="head"), "fsdp_ignored_modules"),
        (
            fsdp(activation_checkpointing=True, activation_checkpointing_offload=True),
            "fsdp_activation_checkpointing_offload",
        ),
        (fsdp() | {"parallelism_config": {"parallelism_config_tp_size": 2}}, "parallelism_config"),
        ({"distributed_type": "MEGATRON_LM", "megatron_lm_config": {}}, "MEGATRON_LM"),
        (deepspeed(zero_stage=0), "stage 0, which is engine: ddp"),
        (deepspeed(zero_stage=4), "stage 4"),
        (deepspeed(zero_stage=3, offload_param_device="nvme"), "nvme"),
        (deepspeed(gradient_clipping="much"), "gradient_clipping to much"),
        ({"mixed_precision": "fp8", "fp8_config": {"backend": "TE"}}, "precision: fp8"),
    ],
)
def test_what_no_run_can_have_is_refused_in_files_and_in_environments(
    changes: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.utils.launch.is_fp8_available", lambda: True)
    file = written(tmp_path, **changes)
    found = from_file(file)
    (sentence,) = found.refused
    assert told in sentence
    assert replace(found, whose="") == replace(from_environment(launched(file)), whose="")


def test_what_never_reaches_an_environment_is_refused_in_a_file(tmp_path: Path) -> None:
    for changes in ({"distributed_type": "XLA"}, {"compute_environment": "AMAZON_SAGEMAKER"}):
        (told,) = from_file(written(tmp_path, **changes)).refused
        assert "a run's engines are ddp, fsdp and deepspeed" in told


def test_an_environment_of_two_engines_is_refused() -> None:
    asked = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_FSDP": "1", "FSDP_VERSION": "2"}
    assert from_environment(asked).refused == (
        "asks for FSDP and for DeepSpeed; launch with one of them",
    )


def test_an_environment_tells_how_many_processes_there_are() -> None:
    assert from_environment({"WORLD_SIZE": "4"}).processes == 4
    assert from_environment({}) == Settings("accelerate's launcher")


@pytest.mark.parametrize("file", READY, ids=lambda file: file.stem)
def test_accelerate_reads_every_ready_file(file: Path) -> None:
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

    config = load_config_from_file(str(file))
    assert isinstance(config, ClusterConfig)
    found = from_file(file)
    assert not found.refused
    assert "precision" not in found.asked
    command = file.read_text().splitlines()[0]
    assert f"accelerate launch --config_file {file.relative_to(ROOT)}" in command
    flags = command.partition(f"{file.name} ")[2].partition("-m ")[0].split()
    flags = [{"R": "1", "HEAD": "127.0.0.1"}.get(flag, flag) for flag in flags]
    made = launched(file, *flags)
    assert replace(from_environment(made), whose="") == replace(found, whose="")


@pytest.mark.parametrize("file", READY, ids=lambda file: file.stem)
def test_a_flag_leaves_the_engine_to_the_run(file: Path) -> None:
    flags = ("--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    assert "engine" not in from_environment(launched(file, *flags)).asked


@pytest.mark.parametrize("name", ["mixed_precision", "dynamo_backend"])
def test_a_no_without_quotes_is_told_before_accelerate_falls_over_it(
    name: str, tmp_path: Path
) -> None:
    file = written(tmp_path, **{name: False})
    with pytest.raises(AttributeError):
        launched(file)
    with pytest.raises(UserError, match=f"{name}: YAML"):
        from_file(file)


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "a: [", "num_processes: 2", "{distributed_type: FSDP, fsdp_config: 2}"]
)
def test_a_file_that_accelerate_refuses_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=str(file)):
        from_file(file)
    with pytest.raises(UserError, match="no such file"):
        from_file(tmp_path / "nowhere.yaml")


# ---- DeepSpeed's own file


def of_json(folder: Path, data: Any, precision: str = "no", **accelerates: Any) -> Settings:
    """What accelerate's file asks for that names a file of DeepSpeed's; both ways are compared."""
    own = folder / "ds.json"
    own.write_text(json.dumps(data))
    changes = deepspeed(deepspeed_config_file=str(own), **accelerates)
    file = written(folder, mixed_precision=precision, **changes)
    found, made = from_file(file), from_environment(launched(file))
    assert found.whose == f"{file} (with {own})"
    assert made.whose == f"accelerate's launcher (with {own})"
    assert replace(found, whose="") == replace(made, whose="")
    return found


def test_deepspeeds_own_file_is_read(tmp_path: Path) -> None:
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}, "overlap_comm": True}
    data = {"zero_optimization": zero, "train_batch_size": 64, "gradient_accumulation_steps": 2}
    data |= {"train_micro_batch_size_per_gpu": 16, "gradient_clipping": 1.0, "prescale": False}
    data |= {"bf16": {"enabled": True}, "fp16": {"enabled": False, "loss_scale": 0}}
    found = of_json(tmp_path, data)
    assert found.asked == {
        "engine": "deepspeed", "precision": "bf16", "shard.stage": 2, "shard.offload": True,
        "optim.clip_norm": 1.0, "train.global_batch": "64", "train.micro_batch": "16",
    }  # fmt: skip
    assert (found.accumulation, found.off, found.refused) == ("2", ("fp16",), ())
    assert found.unread == ("zero_optimization.overlap_comm", "fp16.loss_scale")


def test_auto_leaves_it_to_accelerates_file_and_to_the_run(tmp_path: Path) -> None:
    zero = {"stage": "auto", "offload_param": {"device": "auto"}}
    data = {"zero_optimization": zero, "train_batch_size": "auto", "gradient_clipping": "auto"}
    data |= {"gradient_accumulation_steps": "auto", "bf16": {"enabled": "auto"}}
    found = of_json(tmp_path, data, zero_stage=1)
    assert replace(found, whose="F") == Settings("F", {"engine": "deepspeed", "shard.stage": 1})


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"optimizer": {"type": "AdamW"}}, "'optimizer'"),
        ({"scheduler": {"type": "WarmupLR"}}, "'scheduler'"),
        ({"communication_data_type": "fp16"}, "communication_data_type"),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "quantized_weights"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "asks for bf16 and for fp16"),
        ({"zero_optimization": {}}, "asks for ZeRO's stage 0"),
    ],
)
def test_what_would_change_a_step_is_refused(
    data: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    (told,) = of_json(tmp_path, {"zero_optimization": {"stage": 2}} | data).refused
    assert sentence in told


def test_two_files_that_say_two_things_are_refused(tmp_path: Path) -> None:
    found = of_json(tmp_path, {"zero_optimization": {"stage": 2}}, zero_stage=3)
    assert found.refused == (f"sets zero_stage 3, but 2 in {tmp_path / 'ds.json'}; leave one out",)
    assert found.asked["shard.stage"] == 2  # as accelerate has it where a flag says the other
    data = {"zero_optimization": {"stage": 2}, "fp16": {"enabled": True}}
    assert of_json(tmp_path, data, "bf16").refused == ("asks for bf16 and for fp16; leave one out",)
    assert of_json(tmp_path, data, "fp16").refused == ()


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_file_of_deepspeeds_that_cannot_be_read(text: str, tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(text)
    asked = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
    with pytest.raises(UserError, match=str(file)):
        from_environment(asked)
    file.unlink()
    with pytest.raises(UserError, match="No such file"):
        from_environment(asked)
