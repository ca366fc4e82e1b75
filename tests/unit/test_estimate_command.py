"""`lensdist estimate`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lensdist.cli import main
from lensdist.config import load
from lensdist.utils.errors import UserError
from slurm.config.cluster import Cluster
from tests.conftest import ROOT

pytestmark = pytest.mark.unit
DEBUG = ["estimate", "--config", str(ROOT / "configs" / "mae" / "debug.yaml")]
EIGHT = ["--cluster", str(ROOT / "configs" / "clusters" / "slurm-8gpu.yaml")]
KNOWN = {"memory_gb": 24, "bf16_tflops": 100, "fp32_tflops": 40, "memory_gb_s": 900}


def test_on_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "estimate.json"
    words = ["--gpus", "1,8,16", "train.micro_batch=2", "--json", str(file)]
    assert main([*DEBUG, *EIGHT, *words]) == 0
    text = capsys.readouterr().out
    assert "mae/debug: ddp, precision no, 16 images a step in micro-batches of 2" in text
    assert "memory of one of 8 GPUs" in text
    assert "fits: 0.0" in text
    assert "time on H100:" in text
    assert "~ so many GPUs cannot share the step's 8 micro-batches evenly" in text
    found = json.loads(file.read_text())
    assert [row["gpus"] for row in found["rows"]] == [1, 8, 16]
    assert [row["weak"] for row in found["rows"]] == [False, False, True]
    assert found["network"]["parameters"] == 182_081
    assert found["hardware"]["memory_gb_s"] == 3350
    engines = ["ddp", "fsdp 2", "fsdp 3", "fsdp 3 offload", "deepspeed 1", "deepspeed 2"]
    assert list(found["memory"]) == [*engines, "deepspeed 3", "deepspeed 3 offload"]
    row = found["rows"][0]
    assert row["epoch_s"] == pytest.approx(96 / row["images_s"])  # of 120 without substructure
    parts = row["memory"]
    assert parts["total"] == pytest.approx(sum(v for k, v in parts.items() if k != "total"))


def test_auto_is_the_part_of_each_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "estimate.json"
    assert main([*DEBUG, *EIGHT, "--gpus", "1,8,16,32", "--json", str(file)]) == 0
    text = capsys.readouterr().out
    assert "16 over the number of GPUs (train.micro_batch: auto)" in text
    assert "~ so many GPUs cannot share the step's 16 images evenly" in text
    rows = json.loads(file.read_text())["rows"]
    assert [(row["batch"], row["micros"], row["weak"]) for row in rows] == [
        *[(16, 1, False)] * 3,
        (32, 1, True),
    ]
    held = [row["memory"]["activations"] for row in rows]
    assert held == pytest.approx([held[0], held[0] / 8, held[0] / 16, held[0] / 16])


def test_without_a_cluster_memory_but_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(DEBUG) == 0
    text = capsys.readouterr().out
    assert "memory of one of 1 GPU, GB" in text
    assert "time: not known without hardware; give --cluster FILE" in text
    assert main([*DEBUG, "cluster.hardware.gpu=A40", "cluster.gpus_per_node=4"]) == 0
    text = capsys.readouterr().out
    assert "memory of one of 4 GPUs" in text
    assert "time on A40:" in text


def test_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    large = ["estimate", "--config", str(ROOT / "configs" / "mae" / "reference.yaml")]
    words = ["cluster.hardware.gpu=V100-16", "train.global_batch=8192", "--gpus", "1"]
    assert main([*large, *words]) == 0
    text = capsys.readouterr().out
    assert (
        "does not fit: 134 of 16 GB, of which CUDA and NCCL need some; train.micro_batch=" in text
    )
    assert "! does not fit the GPU." in text
    assert main([*large, "train.reproducible=true", *words]) == 0  # which only DDP can
    assert "fsdp" not in capsys.readouterr().out.partition("does not fit")[0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--gpus", "0"], "--gpus 0: '0'"),
        (["--gpus", "8,,"], "--gpus 8,,: ''"),
        (["--gpus", "12"], "12 GPUs are not whole nodes of 8"),
        (["cluster.hardwar.gpu=H100"], "unknown key; did you mean 'hardware'?"),
        (["cluster.hardware.gpu=X100"], "'X100' is not one of V100-16, "),
        (["cluster.hardware.sustained=1.5"], "hardware.sustained"),
        (["optim.lrr=1"], "did you mean 'lr'?"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*DEBUG, *EIGHT, *words]) == 2
    told = capsys.readouterr()
    assert sentence in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert told.out == ""


def test_a_network_that_cannot_be_built(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(ROOT / "configs" / "common" / "debug.yaml")
    assert main(["estimate", "--config", file, "model.members=[vgg12]"]) == 2
    assert "model.members: 'vgg12'" in capsys.readouterr().err


def test_of_a_cluster_s_file_only_its_shape_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All else is the launcher's, which an installed wheel lacks; `plan` checks it."""
    file = tmp_path / "mine.yaml"
    file.write_text("partition: gpu\nsome_day: 1\nnodes: 2-4\ngpus_per_node: 4\n")
    assert main([*DEBUG, "--cluster", str(file)]) == 0
    assert "memory of one of 8 GPUs" in capsys.readouterr().out
    for line, told in (("nodes: two", "mine.yaml:1"), ("gpus_per_nod: 4", "'gpus_per_node'")):
        file.write_text(f"{line}\n")
        assert main([*DEBUG, "--cluster", str(file)]) == 2
        assert told in capsys.readouterr().err


def test_hardware_of_a_cluster(tmp_path: Path) -> None:
    def read(hardware: dict[str, object]) -> Cluster:
        file = tmp_path / "cluster.yaml"
        file.write_text(json.dumps({"gpus_per_node": 2, "hardware": hardware}))
        return load(file, schema=Cluster)

    own = read({"gpu": "A100-40", "memory_gb": 38, "link_gb_s": 25}).hardware
    assert own is not None
    assert own.sheet.memory_gb == 38
    assert own.sheet.link_gb_s == 25
    assert own.sheet.bf16_tflops == 312
    other = read(KNOWN).hardware
    assert other is not None
    assert (other.name, other.sheet.fp16_tflops, other.sheet.fp8_tflops) == ("GPU", 100, None)
    with pytest.raises(UserError, match="without gpu, give bf16_tflops, fp32_tflops as well"):
        read({"memory_gb": 24, "memory_gb_s": 900})
    assert Cluster.model_validate_json(read(KNOWN).model_dump_json()) == read(KNOWN)
