"""Speed switches: the same losses, on the same names, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from lensdist.config import load
from lensdist.config.schema import BaseRun, schema_of
from lensdist.distributed.config import SpeedConfig, strategy_name
from lensdist.distributed.speed import apply, check, check_network, undo
from lensdist.models.classifier import Classifier
from lensdist.models.config import (
    ClassifierConfig,
    EncoderConfig,
    EnsembleConfig,
    MaeConfig,
    SuperResolverConfig,
)
from lensdist.models.ensemble import Ensemble
from lensdist.models.mae import MaskedAutoencoder
from lensdist.models.super_resolution import SuperResolver
from lensdist.models.vit import blocks_of
from lensdist.utils.errors import UserError
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
ENCODER: dict[str, Any] = {"image_size": 16, "patch_size": 4, "dim": 16, "heads": 2, "mlp_dim": 32}


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    counters.clear()
    yield
    torch.compiler.reset()


def _mae(depth: int = 6) -> MaskedAutoencoder:
    torch.manual_seed(0)
    more = {"depth": depth, "dropout": 0.2, "decoder": "tokens", "decoder_dim": 8}
    return MaskedAutoencoder(MaeConfig(**ENCODER, **more, decoder_depth=2)).train()


def _ensemble(*members: str, **more: Any) -> Ensemble:
    torch.manual_seed(0)
    cfg = EnsembleConfig(members=members, image_size=32, head_dims=(8,), head_dropout=0.2, **more)
    return Ensemble(cfg, 3).train()


def _inputs(model: nn.Module, step: int, n: int = 4) -> tuple[Any, ...]:
    drawn = torch.Generator().manual_seed(step)
    if not isinstance(model, MaskedAutoencoder):
        return (torch.rand(n, 1, 32, 32, generator=drawn),)
    mask = torch.zeros(n, 16, dtype=torch.bool)
    mask[:, :8] = True
    return torch.rand(n, 1, 16, 16, generator=drawn), mask, 8


def _train(model: nn.Module, steps: int = 3, first: int = 0) -> tuple[list[float], list[Tensor]]:
    """Losses of a few steps, and the gradients of the last."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    losses = []
    for step in range(first, first + steps):
        optimizer.zero_grad()
        torch.manual_seed(step)  # dropout
        loss = (model(*_inputs(model, step)) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, [p.grad.clone() for p in trained if p.grad is not None]


def _apply(model: nn.Module, backend: str = "aot_eager", **switches: Any) -> None:
    apply(model, SpeedConfig(**switches), backend=backend)


def test_the_layers_of_every_network() -> None:
    mae = _mae()
    assert blocks_of(mae) == [*mae.encoder.blocks, *mae.decoder.blocks]  # type: ignore[misc]
    classifier = Classifier(ClassifierConfig(**ENCODER, depth=3), 3)
    assert blocks_of(classifier) == list(classifier.encoder.blocks)
    resolver = SuperResolver(
        SuperResolverConfig(image_size=16, encoder=EncoderConfig(**ENCODER, depth=2), width=4)
    )
    assert blocks_of(resolver) == list(resolver.encoder.blocks)
    assert blocks_of(_ensemble("lensnet")) == []


def test_recomputing_changes_no_bit() -> None:
    plain, quick = _mae(), _mae()
    _apply(quick, recompute=True)
    calls = []
    for block in blocks_of(quick):
        block.norm1.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
    losses, gradients = _train(plain)
    assert losses[0] != losses[1]
    again, theirs = _train(quick)
    assert again == losses
    assert all(torch.equal(a, b) for a, b in zip(gradients, theirs, strict=True))
    assert len(calls) == 2 * 3 * 8  # forward and backward pass, of three steps, of eight layers


def test_layers_are_compiled_once_for_all() -> None:
    plain, quick = _mae(), _mae()
    names = list(quick.state_dict())
    _apply(quick, compile="blocks", recompute=True)
    assert list(quick.state_dict()) == names
    losses = _train(quick)[0]
    assert losses == pytest.approx(_train(plain)[0], rel=1e-5)
    # Six layers of the encoder, two narrower ones of the decoder.
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


def test_evaluation_is_not_compiled() -> None:
    plain, quick = _mae(2), _mae(2)
    _apply(quick, compile="blocks", recompute=True)
    for model in (plain, quick):
        model.eval()
    with torch.no_grad():
        for n in (1, 2, 3):  # batches of any size
            torch.testing.assert_close(
                quick(*_inputs(quick, 0, n)), plain(*_inputs(plain, 0, n)), rtol=0, atol=0
            )
    assert not counters["stats"]["unique_graphs"]


def test_a_convolutional_network_is_one_graph() -> None:
    more: dict[str, Any] = {"resize": 24, "grey": "fold", "combine": "probabilities"}
    plain, quick = (_ensemble("lensnet", "lensnet", **more) for _ in range(2))
    _apply(quick, compile="whole")
    assert list(quick.state_dict()) == list(plain.state_dict())
    losses = _train(quick)[0]
    assert losses == pytest.approx(_train(plain)[0], rel=1e-5)
    for name, value in quick.state_dict().items():  # BatchNorm's running statistics among them
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_what_is_frozen_is_compiled_anew_at_each_stage() -> None:
    found = []
    for sped_up in (False, True):
        model, losses = _mae(1), []
        for stage, frozen in enumerate(["encoder.", ""]):
            undo(model)
            for name, p in model.named_parameters():
                p.requires_grad_(not (frozen and name.startswith(frozen)))
            model.train()
            if frozen:
                model.encoder.eval()
            if sped_up:
                _apply(model, compile="blocks")
            losses += _train(model, first=3 * stage)[0]
        found.append(losses)
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_nothing_is_left_behind() -> None:
    model = _mae(2)
    for switches in ({"recompute": True, "compile": "blocks"}, {"compile": "whole"}):
        before = [set(vars(module)) for module in model.modules()]
        _apply(model, **switches)
        assert any("forward" in vars(module) for module in model.modules())
        undo(model)
        assert [set(vars(module)) for module in model.modules()] == before


@pytest.mark.parametrize("grey", ["fold", "repeat"])
def test_channels_may_come_first(grey: str) -> None:
    """Weights and every convolution's output; the losses are the same."""
    plain, quick = _ensemble("resnet18", grey=grey), _ensemble("resnet18", grey=grey)
    pointers = {name: id(p) for name, p in quick.named_parameters()}
    _apply(quick, channels_last=False)
    assert {name: id(p) for name, p in quick.named_parameters()} == pointers
    last = {True: 0, False: 0}

    def seen(module: nn.Module, inputs: Any, output: Tensor) -> None:
        assert output.shape[2] > 1  # of one pixel both layouts are the same
        last[output.is_contiguous(memory_format=torch.channels_last)] += 1

    for model in (plain, quick):
        last.update({True: 0, False: 0})
        # The later layers see one pixel of these images.
        first = [m for m in model.modules() if isinstance(m, nn.Conv2d)][:10]
        handles = [m.register_forward_hook(seen) for m in first]
        model(*_inputs(model, 0))
        for handle in handles:
            handle.remove()
        assert last == ({True: 10, False: 0} if model is plain else {True: 0, False: 10})
    # Of the first step: BatchNorm over four images makes much of rounding in the next.
    assert _train(quick, 1)[0] == pytest.approx(_train(plain, 1)[0], rel=1e-5)


def _cfg(task: str, **words: Any) -> BaseRun:
    told = ["run.dir=x", *(f"{key}={value}" for key, value in words.items())]
    return load(ROOT / "configs" / task / "debug.yaml", told, schema=schema_of)


def _check(cfg: BaseRun, device: str, processes: int) -> None:
    strategy = strategy_name(cfg.engine, cfg.shard)
    check(cfg.speed, cfg.train, strategy, torch.device(device), processes)


GRAPHS = {"speed.compile": "whole", "speed.cuda_graphs": "true"}


@pytest.mark.parametrize(
    ("cfg", "device", "processes", "says"),
    [
        (_cfg("mae", **{"speed.compile": "whole", "speed.recompute": "true"}), "cpu", 1, "whole"),
        (_cfg("mae", engine="deepspeed", **{"speed.compile": "blocks"}), "cpu", 2, "stage 3"),
        (_cfg("mae", **GRAPHS), "cpu", 1, "one process on a GPU, not 1 on cpu"),
        (_cfg("mae", **GRAPHS), "cuda", 2, "one process on a GPU, not 2 on cuda"),
        (_cfg("mae", **GRAPHS, **{"train.micro_batch": 4}), "cuda", 1, "one micro-batch a step"),
    ],
)
def test_refusals(cfg: BaseRun, device: str, processes: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        _check(cfg, device, processes)


@pytest.mark.parametrize(
    ("switches", "says"),
    [({"recompute": True}, "BatchNorm"), ({"compile": "blocks"}, "use whole")],
)
def test_a_network_without_transformer_layers_is_refused(
    switches: dict[str, Any], says: str
) -> None:
    cfg = SpeedConfig(**switches)
    check_network(cfg, _mae())
    with pytest.raises(UserError, match=says):
        check_network(cfg, _ensemble("lensnet"))


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = _cfg("mae", **{"speed.compile": "blocks"})
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(UserError, match="C\\+\\+ compiler"):
        _check(cfg, "cpu", 1)
