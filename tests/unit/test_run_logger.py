"""What a run records at its log intervals, and that recording changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lensdist import train
from lensdist.distributed.config import TrackConfig
from lensdist.distributed.micro_batches import StepPlan
from lensdist.runs.pace import peak_flops
from lensdist.tracking.metrics_log import Row, read
from lensdist.training import checkpoint, loop
from lensdist.training.run_logger import RunLogger
from tests.conftest import settings

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("handlers")]


def trained(data: Path, run: Path, **more: Any) -> tuple[list[Row], dict[str, torch.Tensor]]:
    """The rows of training, and the last state."""
    words = settings("mae", data, run, **{"train.max_steps": 8, **more})
    assert train.main(words) == 0
    saved, _ = checkpoint.newest(run / "checkpoints")
    assert saved is not None
    return [row for row in read(run / "metrics.jsonl") if row["kind"] == "train"], saved.tensors


@pytest.mark.parametrize("clip", ["null", "0.01"])
def test_the_norm_is_of_the_gradient_before_clipping_and_changes_no_bit(
    clip: str, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[float] = []
    build_strategy = loop.build_strategy

    def watched(*args: Any) -> Any:
        engine = build_strategy(*args)
        step = engine.step

        def measured(*given: Any, **more: Any) -> Any:
            gradients = [
                p.grad.double() for p in engine.unwrapped.parameters() if p.grad is not None
            ]
            wanted.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
            return step(*given, **more)

        monkeypatch.setattr(engine, "step", measured)
        return engine

    monkeypatch.setattr(loop, "build_strategy", watched)
    more = {"optim.clip_norm": clip}
    rows, state = trained(tiny_set, tmp_path / "often", **more, **{"train.log_every": 1})
    assert [row["grad_norm"] for row in rows] == pytest.approx(wanted, rel=1e-5)
    assert min(wanted) > 0.01
    last, rarely = trained(tiny_set, tmp_path / "once", **more, **{"train.log_every": 99})
    assert [row["step"] for row in last] == [8]
    assert last[0]["grad_norm"] == rows[-1]["grad_norm"]
    assert all(torch.equal(tensor, rarely[name]) for name, tensor in state.items())


def test_a_row_has_the_keys_of_the_documentation(tiny_set: Path, tmp_path: Path) -> None:
    rows, _ = trained(tiny_set, tmp_path)
    documented = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    for row in rows:
        assert row.keys() == {  # on a CPU
            "step", "kind", "loss", "lr", "epoch", "images_per_s", "grad_norm", "data_wait",
        }  # fmt: skip
        assert all(f"| `{key}` |" in documented for key in row)
        assert 0 < row["data_wait"] < 1


def test_speed_is_a_share_of_the_peak_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    logger = RunLogger(tmp_path, TrackConfig(), {}, cpu, 0, enabled=True)
    logger.begin(2, 0, StepPlan(4, 2, range(2), 10))
    logger.peak_images_per_s = 1e9
    nan = torch.tensor(float("inf"))
    logger.train(1, loss=1.0, lr=0.1, grad_norm=nan, waited=0.0)
    logger.close()
    (row,) = read(tmp_path / "metrics.jsonl")
    assert row["mfu"] == pytest.approx(row["images_per_s"] / 1e9)
    assert (row["grad_norm"], row["nonfinite"]) == (None, "grad_norm")


def test_other_processes_record_nothing(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, TrackConfig(), {}, torch.device("cpu"), 0, enabled=False)
    logger.begin(2, 0, StepPlan(4, 2, range(2), 10))
    logger.train(1, loss=1.0, lr=0.1, grad_norm=None, waited=0.0)
    logger.event(1, "a", "b")
    with logger.aside():
        logger.scores(1, {}, True, 1.0)
    logger.sync()
    logger.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H200", "fp8", 989),
        ("NVIDIA A100-SXM4-80GB", "no", 19.5),
        ("NVIDIA A100-PCIE-40GB", "bf16", 312),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA H100 PCIe", "bf16", None),  # slower than the SXM module on file
        ("NVIDIA H100 NVL", "bf16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("NVIDIA GH200 480GB", "bf16", None),
        ("NVIDIA GeForce RTX 4090", "bf16", None),
    ],
)
def test_the_peak_of_a_gpu_is_found_by_its_name(
    name: str, precision: str, tflops: float | None
) -> None:
    assert peak_flops(name, precision) == (tflops and tflops * 1e12)
