"""What needs a CUDA device: skipped, and said so, where there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.conftest import command, environment, settings, start
from tests.runs import assert_same_bits, losses, newest, record

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in environment().items() if k != "ACCELERATE_USE_CPU"}
    return {**kept, "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}


@pytest.mark.parametrize("task", ["mae", "common", "sr"])  # common: kept features, then unfrozen
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_run_stops_and_resumes_in_the_same_bits(
    tiny_set: Path, pairs_set: Path, tmp_path: Path, precision: str, task: str
) -> None:
    more = {"train.max_steps": 12, "train.ema": 0.9, "optim.clip_norm": 1.0}
    if task == "common":
        more |= {"train.max_steps": 22, "train.epochs": 9, "unfreeze_epochs": "[3,2,1,1,1,1]"}
    for name in ("whole", "halves"):
        run = tmp_path / name
        data = pairs_set if task == "sr" else tiny_set
        words = [*settings(task, data, run, **more), f"precision={precision}"]
        if name == "halves":
            killer = command("tests.faults.killer", "term", 5, "--", *words)
            assert start(killer, env=_environment()).returncode == 75
        done = start(command("lensdist.train", *words), env=_environment())
        assert done.returncode == 0, done.stderr
        assert "cuda" in done.stderr
        assert record(run)
    assert_same_bits(newest(tmp_path / "halves"), newest(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("engine", "precision"),
    [("fsdp", "no"), ("fsdp", "bf16"), ("fsdp", "fp16"), ("zero1", "bf16"), ("zero2", "no"),
     ("zero2", "bf16"), ("zero3", "no"), ("zero3", "bf16")],
)  # fmt: skip
def test_an_engine_gives_the_losses_of_ddp(
    tiny_set: Path, tmp_path: Path, engine: str, precision: str
) -> None:
    """On one GPU; tests/distributed/test_engines.py has several processes, on CPUs."""
    for name in ("ddp", engine):
        run = tmp_path / name
        more = {"train.max_steps": 12, "train.ema": 0.9, "optim.clip_norm": 1.0}
        more |= {"train.log_every": 1, "engine": name}
        if name.startswith("zero"):
            more |= {"engine": "deepspeed", "shard.stage": name[-1]}
        words = [*settings("mae", tiny_set, run, **more), f"precision={precision}"]
        done = start(command("lensdist.train", *words), env=_environment())
        assert done.returncode == 0, done.stderr
    near = 1e-5 if precision == "no" else 1e-3
    assert losses(tmp_path / engine) == pytest.approx(losses(tmp_path / "ddp"), rel=near)


def test_simulation_is_the_same_as_on_the_cpu() -> None:
    from lensdist.sim import SimConfig, Simulator
    from lensdist.utils import rng

    samples = torch.arange(60)
    images = [
        Simulator(SimConfig(family="model_ii"), device, torch.float64)
        .batch(rng.key(1, "gpu"), samples)["image"]
        .cpu()
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(images[1], images[0], rtol=1e-9, atol=1e-9)


def test_lens_fits_are_the_same_as_on_the_cpu() -> None:
    from lensdist.sim import SimConfig, Simulator
    from lensdist.sim.families import FAMILIES
    from lensdist.sim.fit import SmoothLensFit
    from lensdist.utils import rng

    images = Simulator(SimConfig(family="common")).batch(rng.key(1, "gpu"), torch.arange(24))
    chi = [
        SmoothLensFit(FAMILIES["common"], torch.device(device))(
            images["image"][:, 0].to(device)
        ).chi.cpu()
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(chi[1], chi[0], rtol=0, atol=1e-4)


def test_masks_are_the_same_as_on_the_cpu() -> None:
    from lensdist.models.config import MaskConfig
    from lensdist.models.masking import make_mask

    images = torch.rand(16, 1, 64, 64)
    cfg = MaskConfig(ratio=0.5, informative=0.5)
    samples = torch.arange(16)
    on_cpu = make_mask(images, 8, cfg, 3, samples)
    assert torch.equal(make_mask(images.cuda(), 8, cfg, 3, samples.cuda()).cpu(), on_cpu)
