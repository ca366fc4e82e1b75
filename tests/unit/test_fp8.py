"""Float8 products against float32's, within what rounding to so few digits allows."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import reset
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lensdist.distributed import fp8
from lensdist.models.config import EncoderConfig
from lensdist.models.vit import Block

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("narrow")]

FOUR, FIVE = torch.float8_e4m3fn, torch.float8_e5m2


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of a few dozen features count as wide."""
    monkeypatch.setattr(fp8, "WIDE", 30)


def pair(inputs: int, outputs: int) -> tuple[nn.Linear, nn.Linear]:
    """The same layer, in float8 and as it was."""
    torch.manual_seed(0)
    plain = nn.Linear(inputs, outputs)
    ours = copy.deepcopy(plain)
    assert fp8.apply(ours) == 1
    return ours, plain


def farthest(x: Tensor, kind: torch.dtype) -> Tensor:
    """How far rounding can move each number: half of the spacing of float8's about it."""
    info = torch.finfo(kind)
    unit = 2.0 ** torch.ceil(torch.log2(x.abs().max() / info.max))
    return (x.abs() * info.eps / 2).clamp(min=float(unit * info.smallest_normal * info.eps / 2))


def rounded(found: Tensor, a: Tensor, b: Tensor, kind_a: torch.dtype, kind_b: torch.dtype) -> None:
    """`found` is a @ b of matrices rounded to these types: at worst, and in root mean square.

    At worst, |a' b' - a b| <= da |b| + |a| db + da db, summed up. Numbers 1 <= m < 2 as frequent as
    1 / m are off by eps / 2 / sqrt(3) of sqrt(E m^2) = 1.47: by 0.196 eps, which add up in squares.
    """
    error = found.detach().double() - a @ b
    da, db = farthest(a, kind_a), farthest(b, kind_b)
    assert bool((error.abs() <= 1.00001 * (da @ b.abs() + a.abs() @ db + da @ db)).all())
    expected = 0.196 * (torch.finfo(kind_a).eps ** 2 + torch.finfo(kind_b).eps ** 2) ** 0.5
    assert float(error.norm() / (a @ b).norm()) == pytest.approx(expected, rel=0.15)


def test_errors_are_those_of_rounding() -> None:
    ours, _ = pair(48, 64)
    torch.manual_seed(1)
    x = torch.randn(3, 7, 48, requires_grad=True)  # 21 rows: padded to 32
    grad = torch.randn(3, 7, 64) * 1e-6
    y = ours(x)
    y.backward(grad)
    weight, bias = ours.weight.detach().double(), ours.bias.detach().double()
    rows, g = x.detach().double().reshape(21, 48), grad.double().reshape(21, 64)
    of_x, of_weight, of_bias = x.grad, ours.weight.grad, ours.bias.grad
    assert of_x is not None
    assert of_weight is not None
    assert of_bias is not None
    rounded(y.reshape(21, 64) - bias, rows, weight.T, FOUR, FOUR)
    rounded(of_x.reshape(21, 48), g, weight, FIVE, FOUR)
    rounded(of_weight, g.T, rows, FIVE, FOUR)
    torch.testing.assert_close(of_bias.double(), g.sum(0), rtol=1e-5, atol=1e-12)
    assert {t.dtype for t in (of_x, of_weight, of_bias)} == {torch.float32}


@pytest.mark.parametrize("scale", [1.0, 3 * 2.0**-40, 3 * 2.0**40])
def test_what_float8_can_hold_is_exact(scale: float) -> None:
    ours, plain = pair(32, 32)
    torch.manual_seed(2)
    with torch.no_grad():  # integers of up to four (three) bits, of any size
        for layer in (ours, plain):
            layer.weight.copy_((torch.arange(1024).reshape(32, 32) * 7 % 31 - 15) / 64)
            layer.bias.copy_(torch.arange(32.0) * scale)
    x = torch.randint(-4, 5, (16, 32)).float() * scale
    grad = torch.randint(-3, 4, (16, 32)) / 2**20
    found = []
    for layer in (ours, plain):
        mine = x.clone().requires_grad_()
        y = layer(mine)
        y.backward(grad)
        found.append([y.detach(), mine.grad, layer.weight.grad, layer.bias.grad])
    for a, b in zip(*found, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_gradients_keep_what_is_far_smaller_than_the_largest() -> None:
    ours, _ = pair(32, 32)
    nn.init.eye_(ours.weight)
    x = torch.randn(16, 32, requires_grad=True)
    grad = (2.0 ** -torch.arange(0, 32, 2.0))[:, None].expand(16, 32)
    ours(x).backward(grad)
    assert x.grad is not None
    assert torch.equal(x.grad, grad)


def test_tensors_of_zeros_give_zeros() -> None:
    ours, _ = pair(32, 32)
    x = torch.zeros(16, 32, requires_grad=True)
    y = ours(x)
    assert torch.equal(y, ours.bias.expand(16, 32))
    y.backward(torch.zeros(16, 32))
    assert all(t.grad is not None and not t.grad.any() for t in (x, ours.weight, ours.bias))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_not_hidden(bad: float) -> None:
    ours, _ = pair(32, 32)
    x = torch.randn(16, 32)
    x[3, 4] = bad
    assert not bool(ours(x).isfinite().any())


@pytest.mark.parametrize("rows", [1, 15, 16, 17])
def test_odd_numbers_of_rows_change_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    matmul = fp8._matmul

    def spy(a: Tensor, b: Tensor, *more: Any) -> Tensor:
        taken.extend(b.shape)
        return matmul(a, b, *more)

    monkeypatch.setattr(fp8, "_matmul", spy)
    ours, _ = pair(32, 48)
    torch.manual_seed(3)
    x = torch.randn(17, 32)
    x[0] = 4.0  # the largest of any selection: they have the same scale
    mine = x[:rows].clone().requires_grad_()
    y = ours(mine)
    y.square().sum().backward()
    assert mine.grad is not None
    assert y.shape == (rows, 48)
    assert mine.grad.shape == (rows, 32)
    assert torch.equal(y, ours(x)[:rows])
    assert not any(side % 16 for side in taken)  # which a CPU would take


def test_types_are_those_of_a_linear_layer() -> None:
    ours, plain = pair(32, 32)
    for dtype in (torch.float32, torch.bfloat16):
        for under in (True, False):
            x = torch.randn(16, 32, dtype=dtype, requires_grad=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=under):
                y = ours(x)
                assert y.dtype == (torch.bfloat16 if under else dtype)
                assert dtype is not torch.float32 or y.dtype == plain(x).dtype
            y.float().sum().backward()
            assert x.grad is not None
            assert x.grad.dtype == dtype


def test_gradients_of_float32_weights_are_not_rounded_to_bf16() -> None:
    ours, _ = pair(32, 32)
    x, grad = torch.randn(48, 32).bfloat16(), torch.randn(48, 32).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x)
    y.backward(grad)
    assert ours.weight.grad is not None
    assert not torch.equal(ours.weight.grad, ours.weight.grad.bfloat16().float())
    torch.testing.assert_close(ours.bias.grad, grad.float().sum(0))


def test_layouts_are_what_cuda_takes() -> None:
    """On the meta device torch checks CUDA's rules, which a CPU does not have."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, device="meta", requires_grad=True)

    weight, bias, x = empty(64, 32), empty(64), empty(48, 32)
    product = fp8._Product.apply
    for rows in (x, empty(32, 48).T, x.bfloat16(), x[:1].expand(48, 32)):
        y = product(rows, weight, bias, torch.bfloat16)  # type: ignore[no-untyped-call]
        for grad in (torch.empty_like(y), torch.empty_like(y.T).T, torch.empty_like(y[:1])):
            y.backward(grad.expand(48, 64), retain_graph=True)
    a, one = torch.empty(32, 32, device="meta", dtype=FOUR), torch.ones((), device="meta")
    with pytest.raises(RuntimeError, match="col_major"):  # so the rules are checked
        torch._scaled_mm(a, a, one, one)


def test_torchs_counter_counts_the_products() -> None:
    ours, _ = pair(32, 64)
    with FlopCounterMode(display=False) as counter:
        ours(torch.randn(16, 32, requires_grad=True)).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 16 * 32 * 64


def test_training_goes_down_as_in_bf16() -> None:
    torch.manual_seed(4)
    teacher = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
    x = torch.randn(64, 32)
    wanted = teacher(x).detach()
    student = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
    losses = []
    for fast in (True, False):
        net = copy.deepcopy(student)
        assert not fast or fp8.apply(net) == 2
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        curve = []
        for _ in range(24):
            with torch.autocast("cpu", torch.bfloat16):
                loss = (net(x).float() - wanted).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(loss.item())
        losses.append(curve)
    ours, bf16 = losses
    assert bf16[-1] < bf16[0] / 10
    assert ours == pytest.approx(bf16, rel=0.1)
    assert ours != bf16


def test_a_copy_has_its_own_weights() -> None:
    ours, _ = pair(32, 32)
    twin = copy.deepcopy(ours)
    nn.init.zeros_(twin.weight)
    x = torch.randn(16, 32)
    assert torch.equal(twin(x), twin.bias.expand(16, 32))
    assert not torch.equal(ours(x), twin(x))


def test_evaluation_and_frozen_layers_are_as_they_were() -> None:
    ours, plain = pair(32, 32)
    x = torch.randn(16, 32)
    assert torch.equal(ours.eval()(x), plain(x))
    net = nn.Sequential(nn.Linear(32, 32).eval(), nn.Linear(32, 32))
    assert fp8.apply(net) == 1
    net[1].weight.requires_grad_(False)
    inputs = torch.randn(16, 32, requires_grad=True)
    net(inputs).sum().backward()
    assert inputs.grad is not None
    assert net[1].weight.grad is None


def gradients(net: nn.Module, x: Tensor) -> list[Tensor]:
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    y.float().square().mean().backward()
    return [y.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


class Recomputed(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, checkpoint(self.net, x, use_reentrant=False))


def test_recomputed_blocks_have_the_same_bits() -> None:
    torch.manual_seed(5)
    block = Block(EncoderConfig(dim=32, depth=1, heads=2, mlp_dim=64))
    assert fp8.apply(block) == 4
    x = torch.randn(3, 7, 32)
    for a, b in zip(gradients(block, x), gradients(Recomputed(block), x), strict=True):
        assert torch.equal(a, b)


def test_layers_compile_whole_and_once_for_all() -> None:
    torch.manual_seed(5)
    parts = [nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(4)]
    net, x = nn.Sequential(*parts), torch.randn(3, 7, 32)
    assert fp8.apply(net) == 4
    eager = gradients(net, x)
    reset()
    graphs = CompileCounterWithBackend("aot_eager")
    for part in parts:
        part.forward = torch.compile(  # type: ignore[method-assign]
            part.forward, backend=graphs, fullgraph=True, dynamic=False
        )
    for a, b in zip(eager, gradients(net, x), strict=True):
        assert torch.equal(a, b)
    assert graphs.frame_count == 2  # float32 comes in first, and bf16 from then on
    reset()
