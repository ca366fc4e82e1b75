"""What a GPU has to hold, against ZeRO's paper and a real optimizer."""

from __future__ import annotations

import pytest
import torch

from lensdist.distributed.optim import WeightAverage, build_optimizer
from lensdist.estimate.memory import Memory, alternatives, memory, model_state, remedy
from lensdist.models.mae import MaskedAutoencoder
from tests.unit.test_estimate_trace import _config

pytestmark = pytest.mark.unit


def _memory(*changes: str, gpus: int = 8, micros: int = 1, preset: str = "mae/debug") -> Memory:
    return memory(_config(preset, *changes), gpus, micros)


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_zero_s_own_example(stage: int, gigabytes: float) -> None:
    """arXiv:1910.02054, figure 1: 7.5 billion parameters on 64 GPUs, half-precision weights and
    gradients of 2 bytes each, and 12 bytes of Adam's."""
    engine = "deepspeed" if stage else "ddp"
    state = model_state(engine, stage, 7.5e9, 7.5e9, 64, width=2, moments=12)
    total = state.weights + state.gradients + state.moments
    assert total / 1e9 == pytest.approx(gigabytes, rel=0.005)


def test_a_real_optimizer_s_state() -> None:
    cfg = _config("mae/debug", "train.ema=0.9")
    model = MaskedAutoencoder(cfg.model)  # type: ignore[attr-defined]
    optimizer = build_optimizer(model, cfg.optim)
    average = WeightAverage(0.9, dict(model.named_parameters()))
    size = cfg.model.image_size  # type: ignore[attr-defined]
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[:, :32] = True
    model(torch.rand(2, 1, size, size), mask).mean().backward()
    optimizer.step()

    def of(tensors: list[torch.Tensor]) -> int:
        return sum(tensor.nbytes for tensor in tensors)

    found = _memory("train.ema=0.9", gpus=4)
    assert found.weights == of(list(model.parameters()))
    assert found.gradients == of([p.grad for p in model.parameters() if p.grad is not None])
    slots = [v for state in optimizer.state.values() for v in state.values() if v.dim()]
    assert found.moments == of(slots)
    assert found.average == of(list(average.shards.values()))


def test_what_each_engine_divides() -> None:
    words = ("train.ema=0.9", "train.micro_batch=16")
    whole = _memory(*words)
    assert _memory(*words, gpus=1024) == whole  # DDP divides nothing
    fsdp = _memory("engine=fsdp", *words)
    for name in ("weights", "gradients", "moments", "average"):
        assert getattr(fsdp, name) == pytest.approx(getattr(whole, name) / 8)
    assert fsdp.activations == whole.activations
    # At stage 2 the whole network is gathered in each step.
    two, three = (
        _memory("engine=fsdp", f"shard.stage={stage}", preset="mae/reference") for stage in (2, 3)
    )
    assert two.passing > 4 * 15_437_313 > three.passing
    zero = [_memory("engine=deepspeed", f"shard.stage={stage}") for stage in (1, 2, 3)]
    assert [one.moments for one in zero] == [whole.moments / 8] * 3
    assert [one.gradients for one in zero] == [whole.gradients / n for n in (1, 8, 8)]
    # Its optimizer steps on a copy of the share.
    assert [one.weights * 8 / whole.weights for one in zero] == pytest.approx([9, 9, 2])


def test_offloading_leaves_activations_and_what_is_gathered() -> None:
    fsdp = _memory("engine=fsdp", "shard.offload=true", "train.ema=0.9")
    assert (fsdp.weights, fsdp.gradients, fsdp.moments, fsdp.average) == (0, 0, 0, 0)
    zero = _memory("engine=deepspeed", "shard.stage=1", "shard.offload=true")
    whole = _memory()
    assert (zero.weights, zero.gradients, zero.moments) == (whole.weights, whole.gradients, 0)
    assert fsdp.activations == whole.activations


def test_what_else_takes_memory() -> None:
    plain = _memory()
    assert _memory("train.reproducible=true", micros=3).gradients == 3 * plain.gradients
    four = _memory("train.micro_batch=4").activations
    assert _memory("train.micro_batch=16").activations == pytest.approx(4 * four)
    probe = _memory("linear_probe=true", preset="finetune/debug")
    assert probe.gradients < 0.1 * probe.weights
    assert _memory("precision=bf16").activations < plain.activations


def test_the_cheapest_setting_that_makes_it_fit() -> None:
    cfg = _config("mae/large", "engine=ddp", "speed.recompute=false", "speed.compile=no")
    gb = memory(cfg, 8).total / 1e9
    found = {share: remedy(cfg, 8, 1, share * gb) for share in (0.9, 0.6, 0.3, 0.1, 0.001)}
    assert found[0.9] is not None
    assert found[0.9].startswith("speed.recompute=true makes it ")
    assert found[0.3] is not None
    assert found[0.3].startswith("speed.recompute=true, engine=fsdp, shard.stage=3")
    assert found[0.001] is None
    for share, words in found.items():  # what is promised holds
        if words is not None:
            settings = words.partition(" makes it ")[0].split(", ")
            assert memory(_config("mae/large", *_said(cfg.engine), *settings), 8).fits(share * gb)


def test_micro_batches_that_the_network_cannot_take_are_not_proposed() -> None:
    cfg = _config("common/debug", "train.global_batch=8", "train.micro_batch=8")
    sizes = [words for words, _ in alternatives(cfg) if words.startswith("train.micro_batch=")]
    assert sizes == ["train.micro_batch=4", "train.micro_batch=2"]  # BatchNorm of one image


def _said(engine: str) -> list[str]:
    return [f"engine={engine}", "speed.recompute=false", "speed.compile=no"]


def test_what_fits_leaves_room_for_cuda() -> None:
    held = Memory(10e9, 0, 0, 0, 0, 0)
    assert held.fits(11)
    assert not held.fits(10.5)
