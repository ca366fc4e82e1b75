"""Float8 products where there are some: skipped, and said so, elsewhere."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lensdist.distributed import fp8
from lensdist.models.config import EncoderConfig
from lensdist.models.vit import Block
from tests.conftest import command, settings, start
from tests.gpu.test_gpu import _environment
from tests.runs import record

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
        reason="needs a CUDA device of capability 8.9 or more",
    ),
]

WIDE = EncoderConfig(dim=1536, depth=1, heads=16, mlp_dim=3072)


def off(found: Tensor, wanted: Tensor) -> float:
    """Relative distance."""
    return float((found.double().cpu() - wanted.double().cpu()).norm() / wanted.double().norm())


def gradients(net: nn.Module, x: Tensor, autocast: bool = False) -> list[Tensor]:
    net.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        y = net(x)
    y.float().square().mean().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


@pytest.mark.parametrize("rows", [1, 333, 4096])
def test_products_are_the_cpus(rows: int) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(1536, 2048), torch.randn(rows, 1536)
    assert fp8.apply(layer) == 1
    on_cpu = gradients(layer, x)
    on_gpu = gradients(layer.cuda(), x.cuda())
    # Quantised alike but for the gradient, of which a few numbers fall to the other side.
    for cpu, gpu in zip(on_cpu, on_gpu, strict=True):
        assert off(gpu, cpu) < 0.03
    for first, again in zip(on_gpu, gradients(layer, x.cuda()), strict=True):
        assert torch.equal(first, again)


def test_blocks_compile_and_stay_near_bf16() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(Block(WIDE), Block(WIDE)).cuda()
    ours, x = copy.deepcopy(plain), torch.randn(8, 50, 1536, device="cuda")
    assert fp8.apply(ours) == 8
    wanted, eager = gradients(plain, x, autocast=True), gradients(ours, x, autocast=True)
    for block in ours:
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False)
    for bf16, one, two in zip(wanted, eager, gradients(ours, x, autocast=True), strict=True):
        # Through four products one behind the other, each of which is off by 0.055 or less.
        assert off(one, bf16) < 0.15
        assert off(two, bf16) < 0.15


def test_training_goes_down_as_in_bf16() -> None:
    torch.manual_seed(0)
    x = torch.randn(512, 1536, device="cuda")
    wanted = nn.Linear(1536, 1536, device="cuda")(x).detach()
    start_from = nn.Sequential(nn.Linear(1536, 2048), nn.GELU(), nn.Linear(2048, 1536)).cuda()
    ends = []
    for fast in (True, False):
        net = copy.deepcopy(start_from)
        assert not fast or fp8.apply(net) == 2
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
        losses = []
        for _ in range(30):
            with torch.autocast("cuda", torch.bfloat16):
                loss = (net(x).float() - wanted).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0] / 2
        ends.append(losses[-1])
    assert ends[0] == pytest.approx(ends[1], rel=0.2)


def test_a_run(tiny_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    wide = {"model.dim": 1536, "model.heads": 8, "model.mlp_dim": 3072, "train.max_steps": 6}
    words = settings("mae", tiny_set, run, **wide, precision="fp8")
    done = start(command("lensdist.train", *words), env=_environment())
    assert done.returncode == 0, done.stderr
    assert record(run)
