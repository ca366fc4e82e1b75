"""A network on paper: memory traffic, and what the backward pass keeps, against torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lensdist.config.schema import BaseRun, MaeRun
from lensdist.engine import fp8
from lensdist.estimate import parameters, train_bytes, train_flops
from lensdist.estimate.memory import activations, copies
from lensdist.estimate.network import layers_of
from lensdist.models.config import masked_count
from lensdist.models.ensemble import Ensemble
from lensdist.models.mae import MaskedAutoencoder
from tests.conftest import ROOT
from tests.unit.test_flops import _config

pytestmark = pytest.mark.unit
BATCH = 4


def _inputs(cfg: BaseRun) -> tuple[nn.Module, tuple[Any, ...]]:
    model: Any = cfg.model  # type: ignore[attr-defined]
    bands, size = cfg.preprocess.seen(model.in_channels, model.image_size)
    images = torch.rand(BATCH, bands, size, size)
    if not isinstance(cfg, MaeRun):
        return Ensemble(model, 3, bands), (images,)
    hidden = masked_count(cfg.mask, model.grid**2)
    mask = torch.zeros(BATCH, model.grid**2, dtype=torch.bool)
    mask[:, :hidden] = True
    return MaskedAutoencoder(model), (images, mask, hidden)


def _saved(cfg: BaseRun) -> int:
    """Bytes of all that autograd keeps of a forward pass, but for parameters and buffers."""
    model, inputs = _inputs(cfg)
    state = [*model.parameters(), *model.buffers()]
    own = {tensor.untyped_storage().data_ptr() for tensor in state}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    half = torch.autocast("cpu", torch.bfloat16, enabled=cfg.precision != "no")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), half:
        kept = model(*inputs)  # alive while it is counted: freed memory would be used twice
    assert kept.requires_grad
    return sum(found.values())


def _kept(cfg: BaseRun) -> float:
    layers = layers_of(cfg)
    assert layers is not None
    at_work = max(op.moved for layer in layers for op in layer.ops)
    return BATCH * (activations(layers, cfg) - at_work) + copies(layers, cfg)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("mae/debug", ("model.dropout=0.0",)),
        ("mae/debug", ("model.dropout=0.0", "model.block=postnorm")),
        ("mae/small", ()),
        ("common/small", ()),
        ("common/small-reference", ("model.members=[resnet18]",)),
        ("common/small-reference", ("model.members=[densenet121]",)),
    ],
)
def test_what_the_backward_pass_keeps(
    preset: str, changes: tuple[str, ...], precision: str
) -> None:
    """Dropout is left out: a CPU keeps a number for each of its bytes."""
    cfg = _config(preset, f"precision={precision}", *changes)
    assert _kept(cfg) == pytest.approx(_saved(cfg), rel=0.02)


def test_recomputed_layers_keep_their_inputs_and_one_of_them_the_rest() -> None:
    cfg = _config("mae/reference", "precision=bf16", "train.micro_batch=4")
    again = _config("mae/reference", "precision=bf16", "speed.recompute=true")
    layers = layers_of(cfg)
    assert layers is not None
    blocks = [layer for layer in layers if layer.block]
    assert len(blocks) == 6
    own = sum(op.kept for op in blocks[0].ops)
    saved = activations(layers, cfg) - activations(layers, again)
    assert saved == pytest.approx(5 * own - 6 * 64 * 512 * 4)
    cast = sum(op.copied for op in blocks[0].ops)
    assert copies(layers, cfg) - copies(layers, again) == pytest.approx(5 * cast)


@pytest.mark.parametrize(
    ("preset", "changes", "gflop", "megabytes"),
    [
        ("common/reference", ("model.members=[densenet161]", "model.resize=null"), 19.9, 445),
        ("common/reference", ("model.members=[resnet18]", "model.resize=null"), 5.0, 43),
        ("mae/reference", (), 7.4, 72),
        ("sr/reference", ("encoder=null",), 8.3, 89),
    ],
)
def test_traffic_is_near_what_was_worked_out_by_hand(
    preset: str, changes: tuple[str, ...], gflop: float, megabytes: float
) -> None:
    """By hand, kernel by kernel, for bf16 at a batch of 256 and one band."""
    grey = ("model.grey=fold",) if preset.startswith("common") else ()
    cfg = _config(preset, "precision=bf16", "train.global_batch=256", *changes, *grey)
    assert (train_flops(cfg) or 0) / 1e9 == pytest.approx(gflop, rel=0.02)
    assert (train_bytes(cfg) or 0) / 1e6 == pytest.approx(megabytes, rel=0.2)


def test_what_changes_the_traffic() -> None:
    def moved(*changes: str) -> float:
        found = train_bytes(_config("mae/reference", "train.global_batch=64", *changes))
        assert found is not None
        return found

    full, half = moved(), moved("precision=bf16")
    assert 0.5 * full < half < full  # LayerNorm and the tokens stay float32
    assert moved("speed.compile=whole") < moved("speed.compile=blocks") < full
    assert moved("speed.recompute=true") == full
    # Weights are read twice and their gradients written, for each micro-batch.
    weights = 3 * 4 * 15_437_313
    difference = moved("train.micro_batch=1") - full
    assert difference == pytest.approx(weights * (1 - 1 / 64), rel=0.01)


def test_a_frozen_encoder_moves_less() -> None:
    probe = train_bytes(_config("finetune/reference", "linear_probe=true"))
    trained = train_bytes(_config("finetune/reference", "encoder=null"))
    assert probe is not None
    assert trained is not None
    assert trained / probe == pytest.approx(3, rel=0.01)


def test_float8_is_for_the_layers_that_the_engine_chooses() -> None:
    cfg = _config("mae/large")
    layers = layers_of(cfg)
    assert layers is not None
    with torch.device("meta"):
        network = MaskedAutoencoder(cfg.model)  # type: ignore[attr-defined]
    wide = sum(op.wide for layer in layers for op in layer.ops)
    assert wide == len(fp8.layers(network).wide) > 0


def test_unknown_members_are_unknown_everywhere() -> None:
    cfg = _config("common/debug", "model.members=[resnet18,vgg11]")
    assert (parameters(cfg), train_bytes(cfg), layers_of(cfg)) == (None, None, None)


def test_torch_is_not_needed() -> None:
    code = "import sys, lensdist.estimate.report, lensdist.commands.estimate\n"
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
