"""How long a step takes: the simulated timeline, collectives, and rows of numbers of GPUs."""

from __future__ import annotations

import pytest

from lensdist.config.schema import BaseRun
from lensdist.estimate.hardware import Hardware, Links
from lensdist.estimate.memory import FLOAT
from lensdist.estimate.network import network_of, train_bytes, train_flops
from lensdist.estimate.scaling import Row, scaling, usual_counts
from lensdist.estimate.step import Compute, Step, Work, compute, simulate
from lensdist.utils.errors import UserError
from tests.unit.test_estimate_trace import _config

pytestmark = pytest.mark.unit
H100 = Hardware(gpu="H100", network_gb_s=400)


def _work(layers: int = 4, block: bool = True, weights: float = 1.0) -> Compute:
    """Layers of 1 s forward and 2 s backward."""
    return Compute((Work(1.0, 2.0, weights, weights, block),) * layers, 12.0, 0.0, 0.0)


def _about(seconds: float) -> object:
    """But for the latency of a few messages."""
    return pytest.approx(seconds, abs=1e-3)


def _links(seconds: float, size: float = FLOAT) -> Links:
    """Between two GPUs: an all-gather of `size` bytes takes so long."""
    return Links(2, 1, size / 2 / seconds, 0.0)


def _step(found: Compute, links: Links, *changes: str, micros: int = 1) -> Step:
    cfg = _config("mae/debug", *changes)
    step = simulate(found, micros, cfg, H100, links)
    assert step.seconds == pytest.approx(step.compute + step.optimizer + step.exposed)
    return step


def test_ddp_hides_all_buckets_but_the_last() -> None:
    """Four buckets of a layer each: ready 6, 8, 10, 12 s after the start, 1.5 s on the way."""
    weights = 2**20 / FLOAT  # a bucket of 1 MB
    links = _links(0.75, 2**20)  # an all-reduce goes twice
    step = _step(_work(weights=weights), links, "speed.bucket_mb=1")
    assert step.compute == 12
    assert step.sent == _about(6)
    assert step.exposed == _about(1.5)
    # One bucket for all: nothing is hidden.
    assert _step(_work(weights=weights), links).exposed == _about(6)
    # A slow link is a queue: the first leaves 4 + 2 s after the start.
    slow = _step(_work(weights=weights), _links(1.5, 2**20), "speed.bucket_mb=1")
    assert slow.exposed == _about(6 + 4 * 3 - 12)


def test_ddp_speaks_in_the_last_micro_batch_only() -> None:
    links = _links(1.0)
    one, three = (_step(_work(), links, micros=micros) for micros in (1, 3))
    assert three.sent == _about(one.sent)
    assert three.compute == 3 * one.compute
    fixed = _step(_work(), links, "train.reproducible=true", micros=3)
    assert fixed.sent == _about(3 * 4 * 2.0)  # everybody's gradients, of 4 layers


def test_fsdp_gathers_the_next_layer_while_one_computes() -> None:
    """Of 4 layers, 0.5 s each: the first gather of either direction and the last scatter show."""
    step = _step(_work(), _links(0.5), "engine=fsdp")
    assert step.sent == _about((4 + 4 + 4) * 0.5)
    assert step.exposed == _about(0.5 + 0.5 + 0.5)
    two = _step(_work(), _links(0.5), "engine=fsdp", "shard.stage=2")
    assert two.sent == _about((4 + 4) * 0.5)
    assert two.exposed == _about(0.5 + 0.5)
    # Slower than the layers, the link never rests: the time is the link's.
    slow = _step(_work(), _links(5.0), "engine=fsdp")
    assert slow.seconds > 12 * 5
    assert slow.limit == "communication"


def test_what_is_outside_of_layers_is_gathered_first_and_scattered_last() -> None:
    step = _step(_work(block=False), _links(2.0, 4 * FLOAT), "engine=fsdp")
    assert step.exposed == _about(3 * 2.0)


def test_deepspeed_gathers_the_weights_after_the_step() -> None:
    one = _step(_work(), _links(0.5), "engine=deepspeed", "shard.stage=1", micros=2)
    assert one.sent == _about(4 * (2 + 1) * 0.5)
    two = _step(_work(), _links(0.5), "engine=deepspeed", "shard.stage=2", micros=2)
    assert two.sent == _about(4 * (2 * 2 + 1) * 0.5)
    assert one.exposed >= 4 * 0.5


def _volume(engine: str, stage: int, weights: float, gpus: int, micros: int = 1) -> float:
    """Bytes that each process sends in a step. Of the weights' bytes: twice for DDP (an all-reduce)
    and fsdp's stage 2 (gathered once, gradients scattered), three times for stage 3, which gathers
    again in the backward pass (arXiv:1910.02054, section 7); less the part that it has already.

    DeepSpeed's stages 1 and 2 send three times as well, not twice as in the paper: gradients are
    summed on every process, and then the weights are gathered.
    """
    if engine == "ddp":
        times = 2.0
    elif engine == "deepspeed" and stage < 3:
        times = 1 + 2.0 * (micros if stage == 2 else 1)
    else:
        times = stage * float(micros)
    return times * weights * (gpus - 1) / gpus


@pytest.mark.parametrize("micros", [1, 3])
@pytest.mark.parametrize(
    ("engine", "stage"),
    [("ddp", 3), ("fsdp", 2), ("fsdp", 3), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)],
)
def test_what_is_simulated_sends_the_volume_that_is_told(
    engine: str, stage: int, micros: int
) -> None:
    links = Links(8, 1, 1e3, 0.0)  # so slow that latency is nothing
    words = (f"engine={engine}", *([] if engine == "ddp" else [f"shard.stage={stage}"]))
    cfg = _config("mae/debug", *words)
    network = network_of(cfg)
    step = simulate(compute(network.fullest, cfg, H100), micros, cfg, H100, links)
    sent = _volume(engine, stage, FLOAT * network.parameters, 8, micros)
    assert step.sent * 1e3 == pytest.approx(sent)


def test_collectives() -> None:
    """A ring of 8 sends 7/8 of a tensor one way and back; a tree takes fewer rounds."""
    node = H100.links(8, 8)
    assert (node.gpus, node.nodes) == (8, 1)
    assert node.all_reduce(8e9) == pytest.approx(2 * 7e9 / (0.8 * 450e9), rel=1e-3)
    assert node.scatter(8e9) == pytest.approx(7e9 / (0.8 * 450e9), rel=1e-3)
    assert H100.links(1, 8).all_reduce(8e9) == 0
    many = H100.links(1024, 8)
    assert many.nodes == 128
    assert many.bandwidth == pytest.approx(0.8 * 400e9)
    assert many.scatter(1.0) == pytest.approx(128 * 5e-6 + 896 * 1e-6)
    assert many.all_reduce(1.0) == pytest.approx(2 * (7 * 1e-6 + 7 * 5e-6))
    apart = H100.links(4, 1)  # every GPU a node of its own: NVLink helps nobody
    assert apart.bandwidth == pytest.approx(0.8 * 400e9)


def test_a_roofline_is_no_less_than_arithmetic_or_traffic() -> None:
    for preset in ("mae/reference", "common/reference", "sr/debug"):
        cfg = _config(preset, "precision=bf16", "train.global_batch=256", "train.micro_batch=256")
        found = compute(network_of(cfg).fullest, cfg, H100)
        flops, moved = train_flops(cfg), train_bytes(cfg)
        assert flops is not None
        assert moved is not None
        bounds = (256 * flops / H100.flops(cfg), 256 * moved / H100.bandwidth)
        assert max(bounds) * 0.999 <= found.seconds <= sum(bounds) + found.launching
        assert found.seconds == pytest.approx(found.arithmetic + found.memory + found.launching)


def test_small_batches_wait_for_the_host() -> None:
    """The recipe's ensemble launches about 2,500 kernels a step."""
    cfg = _config("common/reference", "precision=bf16", "model.resize=64", "train.global_batch=2")
    row = scaling(cfg, H100, [1], 8)[0]
    assert row.step.limit == "launching kernels"
    assert row.step.compute == pytest.approx(2500 * 5e-6, rel=0.3)
    graphs = _config(
        "common/reference", "precision=bf16", "model.resize=64", "train.global_batch=2",
        "speed.compile=whole", "speed.cuda_graphs=true",
    )  # fmt: skip
    assert scaling(graphs, H100, [1], 8)[0].step.seconds < row.step.seconds / 3


def _rows(cfg: BaseRun, *counts: int, samples: int | None = None) -> list[Row]:
    return scaling(cfg, H100, counts, 8, samples)


def test_rows_share_the_step_as_far_as_it_goes() -> None:
    cfg = _config("mae/reference", "train.global_batch=512", "train.micro_batch=64")
    rows = _rows(cfg, 1, 2, 4, 8, 16, 64, samples=100_000)
    assert [(row.micros, row.batch, row.weak) for row in rows] == [
        (8, 512, False), (4, 512, False), (2, 512, False), (1, 512, False),
        (1, 1024, True), (1, 4096, True),
    ]  # fmt: skip
    assert [row.nodes for row in rows] == [1, 1, 1, 1, 2, 8]
    assert rows[0].efficiency == 1
    for row in rows:
        assert row.images_s == pytest.approx(row.batch / row.step.seconds)
        assert row.efficiency == pytest.approx(row.images_s / row.gpus / rows[0].images_s)
        assert row.epoch_s == pytest.approx(100_000 / row.images_s)
    efficiencies = [row.efficiency for row in rows]
    assert efficiencies == sorted(efficiencies, reverse=True)
    steps = cfg.train.epochs * (100_000 // 512)
    assert rows[0].gpu_hours == pytest.approx(steps * 512 / rows[0].images_s / 3600)
    assert rows[3].gpu_hours == pytest.approx(steps * 512 / rows[3].images_s / 3600 * 8)


def test_no_epoch_of_fewer_images_than_a_batch() -> None:
    cfg = _config("mae/reference", "train.global_batch=64", "train.micro_batch=64")
    assert _rows(cfg, 1)[0].epoch_s is None
    assert _rows(cfg, 1, samples=63)[0].gpu_hours is None
    assert _rows(cfg, 2, samples=64)[0].epoch_s is None  # 128 images are a step there
    assert _rows(cfg, 1, samples=64)[0].epoch_s is not None


def test_frozen_epochs_take_less() -> None:
    def hours(*changes: str) -> float:
        cfg = _config("finetune/reference", "train.global_batch=256", *changes)
        found = _rows(cfg, 1, samples=10_000)[0].gpu_hours
        assert found is not None
        return found

    whole, none = hours("encoder=null"), hours("linear_probe=true")
    half = hours("frozen_epochs=15")
    assert none < half < whole
    assert half == pytest.approx((none + whole) / 2, rel=0.01)


def test_precision_and_recomputing() -> None:
    def seconds(*changes: str, gpu: str = "H100") -> float:
        cfg = _config("mae/large", "shard.stage=3", *changes)
        return scaling(cfg, Hardware(gpu=gpu), [1], 8)[0].step.seconds

    plain = seconds("speed.recompute=false", "precision=bf16")
    assert 1.2 * plain < seconds("speed.recompute=true", "precision=bf16") < 1.35 * plain
    assert seconds("precision=no") > 2 * seconds("precision=bf16")
    assert seconds("precision=fp8") < seconds("precision=bf16")
    # A V100 has no bfloat16, and an A100 no float8.
    half = ("engine=fsdp", "precision=fp16")
    assert seconds(*half, gpu="V100-32") < seconds("precision=bf16", gpu="V100-32") / 2
    assert seconds("precision=fp8", gpu="A100-80") == seconds("precision=bf16", gpu="A100-80")


def test_offloading_is_slow() -> None:
    words = ("engine=fsdp", "speed.recompute=true")
    inside, outside = (
        scaling(_config("mae/large", *words, f"shard.offload={on}"), H100, [8], 8)[0]
        for on in ("false", "true")
    )
    assert outside.step.optimizer > 10 * inside.step.optimizer


def test_counts() -> None:
    assert usual_counts(8) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert usual_counts(1)[:3] == [1, 2, 4]
    assert usual_counts(6)[:6] == [1, 2, 4, 6, 12, 24]
    cfg = _config("mae/debug")
    with pytest.raises(UserError, match="0 GPUs cannot train"):
        _rows(cfg, 0)
    with pytest.raises(UserError, match="12 GPUs are not whole nodes of 8"):
        _rows(cfg, 12)
