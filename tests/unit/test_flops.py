"""Operations and parameters of a network, from its configuration, against torch's own counter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lensdist.config import load
from lensdist.config.schema import (
    BaseRun,
    CommonRun,
    FinetuneRun,
    MaeRun,
    SuperResolutionRun,
    schema_of,
)
from lensdist.data.transforms import Preprocess
from lensdist.estimate import forward_flops, parameters, train_flops
from lensdist.models.config import masked_count
from lensdist.models.ensemble import Ensemble
from lensdist.tasks.build import build_task
from tests.conftest import ROOT, settings

pytestmark = pytest.mark.unit
BATCH = 2


def _config(preset: str, *changes: str) -> BaseRun:
    return load(ROOT / "configs" / f"{preset}.yaml", changes, schema=schema_of)


def _network(cfg: BaseRun) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """What the task builds, and what a step gives it, without memory or work."""
    model: Any = cfg.model  # type: ignore[attr-defined]
    bands, size = cfg.preprocess.seen(model.in_channels, model.image_size)
    with torch.device("meta"):
        inputs: tuple[Any, ...] = (torch.empty(BATCH, bands, size, size),)
        if isinstance(cfg, CommonRun):  # which the task would build and try twice
            return Ensemble(cfg.model, 3, cfg.seen_bands), inputs
        if isinstance(cfg, MaeRun):
            mask = torch.empty(BATCH, cfg.model.grid**2, dtype=torch.bool)
            inputs += (mask, masked_count(cfg.mask, cfg.model.grid**2))
        task = build_task(cfg, ("a", "b", "c"), Preprocess(cfg.preprocess, [0.0], [1.0]))
        return task.build(), inputs


def _presets() -> list[str]:
    """Every preset of a task, but one of those whose networks are the same."""
    found: dict[str, str] = {}
    for task in ("mae", "finetune", "sr", "common"):
        for file in sorted((ROOT / "configs" / task).glob("[!u]*.yaml")):  # unfreeze-*: members
            cfg = _config(f"{task}/{file.stem}")
            shape = cfg.model_dump_json(include={"task", "model", "mask", "preprocess"})
            found.setdefault(shape, f"{task}/{file.stem}")
    return list(found.values())


def _check(cfg: BaseRun) -> None:
    """Operations and parameters are those of the network that the task builds."""
    network, inputs = _network(cfg)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(*inputs)
    assert forward_flops(cfg) == pytest.approx(counter.get_total_flops() / BATCH, rel=1e-6)
    assert parameters(cfg) == sum(p.numel() for p in network.parameters())


def _tiny(task: str) -> BaseRun:
    config, *words = settings(task, Path("x"), Path("y"))
    return load(ROOT / config.removeprefix("--config="), words, schema=schema_of)


@pytest.mark.parametrize("preset", _presets())
def test_every_preset(preset: str) -> None:
    _check(_config(preset))


@pytest.mark.parametrize("task", ["mae", "finetune", "sr", "common"])
def test_tiny_networks(task: str) -> None:
    _check(_tiny(task))


@pytest.mark.parametrize(
    "changes",
    [
        ("model.stem=conv",),
        ("model.image_size=60", "model.patch_size=10", "model.in_channels=2", "model.stem=conv"),
        ("model.image_size=60", "model.patch_size=10"),
        ("model.block=postnorm",),
        ("model.decoder=tokens", "model.decoder_depth=3", "mask.ratio=0.9"),
    ],
)
def test_other_shapes_of_an_autoencoder(changes: tuple[str, ...]) -> None:
    _check(_config("mae/debug", *changes))


@pytest.mark.parametrize("decoder", ["residual", "upconv"])
def test_other_shapes_of_a_super_resolver(decoder: str) -> None:
    _check(_config("sr/debug", f"model.decoder={decoder}", "model.factor=4", "model.sigma=true"))


@pytest.mark.parametrize(
    "member", ["densenet121", "resnet34", "resnet50", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0"]
)
def test_a_published_network_at_a_size_that_halving_does_not_divide(member: str) -> None:
    words = [f"model.members=[{member},lensnet]", "model.grey=fold", "model.resize=75"]
    _check(_config("common/reference", *words, "model.combine=learned"))


def test_a_member_that_is_not_written_down_is_unknown() -> None:
    cfg = _config("common/debug", "model.members=[resnet18,vgg11]")
    assert forward_flops(cfg) is None
    assert train_flops(cfg) is None


@pytest.mark.parametrize("preset", ["mae/debug", "finetune/small", "sr/reference", "common/debug"])
def test_training_takes_three_times_as_much(preset: str) -> None:
    cfg = _config(preset, *([] if preset.startswith(("mae", "common")) else ["encoder=null"]))
    network, inputs = _network(cfg)
    counter = FlopCounterMode(display=False)
    with counter:
        network(*inputs).sum().backward()
    counted = counter.get_total_flops() / BATCH
    found = train_flops(cfg)
    assert found is not None
    assert counted <= found * 1.05
    assert found == pytest.approx(counted, rel=0.2)


def test_a_frozen_encoder_is_only_run_forward() -> None:
    def cost(preset: str, *changes: str) -> float:
        found = train_flops(_config(preset, *changes))
        assert found is not None
        return found

    for preset in ("finetune/reference", "sr/reference"):
        alone = cost(preset, "frozen_epochs=0")
        assert cost(preset, "encoder=null") == alone  # from scratch nothing is frozen
        half = cost(preset, "frozen_epochs=15")
        whole = cost(preset, "frozen_epochs=30")
        assert cost(preset, "frozen_epochs=99") == whole
        assert alone - half == pytest.approx(half - whole)
        assert whole < alone
    forward = forward_flops(_config("finetune/reference"))
    probe = cost("finetune/reference", "linear_probe=true", "encoder=null")
    assert probe == pytest.approx(forward, rel=0.01)  # the head is small


def test_each_task_is_known() -> None:
    for preset, kind in {
        "mae/best": MaeRun,
        "finetune/best": FinetuneRun,
        "sr/best": SuperResolutionRun,
        "common/best": CommonRun,
    }.items():
        cfg = _config(preset)
        assert isinstance(cfg, kind)
        assert (train_flops(cfg) or 0) > 0
