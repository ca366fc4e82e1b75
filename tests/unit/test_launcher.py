"""What accelerate's launcher may not ask of a run, found before and in the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lensdist.config import load
from lensdist.config.schema import BaseRun, schema_of
from lensdist.engine.launcher import Settings, conflicts, from_environment, from_file
from lensdist.errors import UserError
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

OURS = ROOT / "accelerate_config.yaml"


@pytest.fixture(scope="module")
def cfg() -> BaseRun:
    return load(ROOT / "configs/mae/debug.yaml", ["precision=bf16"], schema=schema_of)


def written(folder: Path, without: tuple[str, ...] = (), **changes: Any) -> Path:
    """Our file of settings, changed."""
    data = {**yaml.safe_load(OURS.read_text()), **changes}
    file = folder / "accelerate.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in data.items() if k not in without}))
    return file


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (Settings("F", precision="fp16"), "says 'bf16' but F says 'fp16'; change one of them"),
        (Settings("F", accumulation="4"), "F sets gradient_accumulation_steps to 4; leave it at 1"),
        (Settings("F", dynamo="INDUCTOR"), "F sets dynamo_backend to INDUCTOR; leave it at no"),
        (Settings("F", engines=("FSDP",)), "F asks for FSDP but the run's engine is ddp; launch"),
    ],
)
def test_each_contradiction_is_a_sentence(settings: Settings, sentence: str, cfg: BaseRun) -> None:
    (found,) = conflicts(cfg, settings)
    assert sentence in found


def test_all_contradictions_are_told_at_once(cfg: BaseRun) -> None:
    asked = Settings("F", "fp8", "2", "EAGER", ("DEEPSPEED", "FSDP"))
    assert len(conflicts(cfg, asked)) == 5


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_launcher_may_say_nothing_or_the_same(precision: str, cfg: BaseRun) -> None:
    asked = {"ACCELERATE_MIXED_PRECISION": precision, "ACCELERATE_DYNAMO_BACKEND": "NO"}
    asked |= {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_USE_FSDP": "false"}
    assert conflicts(cfg, from_environment(asked)) == []
    assert conflicts(cfg, from_environment({})) == []


def test_our_own_file_asks_for_nothing(cfg: BaseRun) -> None:
    assert conflicts(cfg, from_file(OURS)) == []


def launched(file: Path) -> dict[str, str]:
    """The environment that accelerate's own launcher makes of a file, with no flags besides."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import launch

    words = ["--config_file", str(file), "--main_process_port", "0", "x.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""
        return dict(launch.prepare_deepspeed_cmd_env(args)[1])
    if args.use_fsdp or args.use_megatron_lm or args.multi_gpu:
        return dict(launch.prepare_multi_gpu_env(args))
    return dict(launch.prepare_simple_launcher_cmd_env(args)[1])


@pytest.mark.parametrize(
    ("without", "changes"),
    [
        ((), {}),
        ((), {"mixed_precision": "BF16"}),
        ((), {"mixed_precision": "fp8"}),
        (("mixed_precision",), {}),
        (("mixed_precision",), {"fp16": True}),
        ((), {"dynamo_backend": "INDUCTOR"}),
        (("dynamo_backend",), {"dynamo_config": {"dynamo_backend": "EAGER"}}),
        (("dynamo_backend",), {"dynamo_config": {"backend": "EAGER", "mode": "default"}}),
        ((), {"dynamo_config": {"backend": "EAGER"}}),  # the older key wins
        ((), {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 1}}),
        ((), {"distributed_type": "MEGATRON_LM", "megatron_lm_config": {}}),
        ((), {"distributed_type": "MULTI_GPU", "num_processes": 2}),
        (
            (),
            {
                "distributed_type": "DEEPSPEED",
                "deepspeed_config": {"gradient_accumulation_steps": 4, "zero_stage": 2},
            },
        ),
        ((), {"deepspeed_config": {"gradient_accumulation_steps": 4}}),  # not in use
    ],
)
def test_a_file_means_what_accelerate_makes_of_it(
    without: tuple[str, ...], changes: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("accelerate.utils.launch.is_fp8_available", lambda: True)
    file = written(tmp_path, without, **changes)
    asked, made = from_file(file), from_environment(launched(file))
    assert asked.precision == made.precision
    assert asked.accumulation == made.accumulation
    assert asked.dynamo.upper() == made.dynamo.upper()
    assert asked.engines == made.engines
    assert asked.whose == str(file)


@pytest.mark.parametrize("name", ["mixed_precision", "dynamo_backend"])
def test_a_no_without_quotes_is_told_before_accelerate_falls_over_it(
    name: str, tmp_path: Path
) -> None:
    file = written(tmp_path, (), **{name: False})
    with pytest.raises(AttributeError):
        launched(file)
    with pytest.raises(UserError, match=f"{name}: YAML takes no without quotes for false"):
        from_file(file)


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "num_processes: 2"])
def test_a_file_that_accelerate_refuses_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=str(file)):
        from_file(file)
    with pytest.raises(UserError, match="No such file"):
        from_file(tmp_path / "nowhere.yaml")


def test_it_needs_neither_torch_nor_accelerate() -> None:
    code = "import sys, lensdist.engine.launcher as it, lensdist.outcome\n"
    code += f"it.from_file(it.Path({str(OURS)!r}))\n"
    code += "sys.exit(' '.join({'torch', 'accelerate'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "\n")
