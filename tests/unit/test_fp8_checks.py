"""Which layers are taken in float8, what they leave as it was, and what is refused beforehand."""

from __future__ import annotations

from types import MethodType
from typing import Any

import pytest
import torch
from torch import nn

from lensdist.config.schema import BaseRun
from lensdist.data.config import PreprocessConfig
from lensdist.data.transforms import Preprocess
from lensdist.distributed import fp8
from lensdist.models.config import EncoderConfig
from lensdist.models.vit import Block
from lensdist.tasks.build import build_task
from lensdist.utils.errors import UserError
from tests.runs import TASKS

pytestmark = pytest.mark.unit

LARGE = {"dim": 1024, "depth": 1, "heads": 16, "mlp_dim": 4096}


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of a few dozen features count as wide."""
    monkeypatch.setattr(fp8, "WIDE", 30)


@pytest.mark.usefixtures("narrow")
def test_names_stay_and_undo_restores() -> None:
    block = Block(EncoderConfig(dim=32, depth=1, heads=2, mlp_dim=64))
    names = list(block.state_dict()), [name for name, _ in block.named_modules()]
    x = torch.randn(2, 8, 32)
    before = block(x)
    assert fp8.apply(block) == 4
    assert (list(block.state_dict()), [name for name, _ in block.named_modules()]) == names
    changed = block(x)
    assert not torch.equal(changed, before)
    assert fp8.apply(block) == 4  # at the next stage, again
    assert torch.equal(block(x), changed)
    fp8.undo(block)
    assert torch.equal(block(x), before)


@pytest.mark.usefixtures("narrow")
def test_undo_leaves_what_others_have_changed() -> None:
    layer = nn.Linear(32, 32)
    layer.forward = MethodType(lambda _, input: input, layer)  # type: ignore[method-assign]
    fp8.undo(layer)
    assert torch.equal(layer(torch.ones(1, 32)), torch.ones(1, 32))


def run(task: str, **more: Any) -> BaseRun:
    raw = {"task": task, "precision": "fp8", "run": {"dir": "run"}, "data": {"path": "nowhere"}}
    return TASKS[task].model_validate({**raw, **more})


def check(cfg: BaseRun) -> None:
    task = build_task(cfg, ("a", "b"), Preprocess(PreprocessConfig(), [0.0], [1.0]))
    with torch.device("meta"):
        network = task.build()
    fp8.check_network(network, task.stages(cfg.train.epochs))


@pytest.mark.parametrize("task", ["mae", "finetune"])
def test_wide_transformers_are_taken(task: str) -> None:
    check(run(task, model=LARGE))


def test_layers_are_told_apart() -> None:
    widths = {"wide": (1024, 4096), "narrow": (512, 1024), "odd": (4096, 4090)}
    with torch.device("meta"):
        found = fp8.layers(nn.ModuleDict({name: nn.Linear(*w) for name, w in widths.items()}))
    assert list(found.wide) == ["wide"]
    assert list(found.narrow) == ["narrow"]
    assert list(found.ragged) == ["odd"]
    assert str(found) == (
        "1 linear layers in float8; in bf16, 1 narrower than 1400, 1 of widths that are not "
        "multiples of 16"
    )


def test_networks_that_gain_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="the widest here is 512 -> 1536"):
        check(run("mae"))
    small = run("common", model={"members": ["resnet18"], "head_dims": []}, init="random")
    with pytest.raises(UserError, match="the widest here is 512 -> 2"):
        check(small)
    with pytest.raises(UserError, match="1998 -> 5994 is not a multiple of 16"):
        check(run("mae", model={**LARGE, "dim": 1998, "heads": 2, "mlp_dim": 1000}))


def test_networks_whose_wide_layers_never_train_are_refused() -> None:
    check(run("finetune", model=LARGE))
    with pytest.raises(UserError, match="frozen throughout"):
        check(run("finetune", model=LARGE, linear_probe=True))


def test_devices_without_float8_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    with pytest.raises(UserError, match="this run is on the CPU; use bf16"):
        fp8.check_device(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(UserError, match=r"NVIDIA A100 has 8\.0; use bf16"):
        fp8.check_device(cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    fp8.check_device(cuda)
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "hip", "7.0")
        with pytest.raises(UserError, match="on an AMD GPU"):
            fp8.check_device(cuda)
    monkeypatch.delattr(torch, "_scaled_mm")
    with pytest.raises(UserError, match=r"needs torch\._scaled_mm"):
        fp8.check_device(cuda)
