"""The ensemble: how members combine, and that its two parts compute the whole."""

from __future__ import annotations

import pytest
import torch

from lensdist.models.config import EnsembleConfig
from lensdist.models.ensemble import Ensemble, sections_of
from lensdist.utils.errors import UserError

pytestmark = pytest.mark.unit
SMALL = ("resnet18", "shufflenet_v2_x0_5")


def _net(**settings: object) -> Ensemble:
    torch.manual_seed(0)
    cfg = EnsembleConfig(**{"members": SMALL, "head_dims": (8,), "grey": "fold", **settings})
    return Ensemble(cfg, 3).eval()


@torch.no_grad()
def test_ways_to_combine() -> None:
    x = torch.rand(5, 1, 48, 48)
    net = _net()
    apart = torch.stack([m(m.prepare(x)) for m in net.backbones])
    torch.testing.assert_close(net(x), apart.mean(0))
    other = _net(combine="probabilities")
    torch.testing.assert_close(other(x).softmax(1), apart.softmax(2).mean(0))
    torch.testing.assert_close(other(x).exp().sum(1), torch.ones(5))
    learned = _net(combine="learned")
    torch.testing.assert_close(learned(x), apart.mean(0))  # equal weights at first
    learned.mix.copy_(torch.tensor([9.0, -9.0]))
    torch.testing.assert_close(learned(x), apart[0], rtol=1e-4, atol=1e-4)


def test_one_network_has_nothing_to_weigh() -> None:
    # A parameter without a gradient would stop DistributedDataParallel.
    assert not hasattr(_net(members=("lensnet",), combine="learned"), "mix")


def test_learned_weights_learn() -> None:
    net = _net(combine="learned")
    net(torch.rand(4, 1, 48, 48)).square().sum().backward()
    assert net.mix.grad is not None
    assert net.mix.grad.abs().sum() > 0


@torch.no_grad()
def test_resize_happens_inside() -> None:
    x = torch.rand(2, 1, 96, 96)
    smaller = torch.nn.functional.interpolate(
        x, (48, 48), mode="bilinear", align_corners=False, antialias=True
    )
    torch.testing.assert_close(_net(resize=48)(x), _net()(smaller))


@torch.no_grad()
@pytest.mark.parametrize("back", range(6))
def test_two_parts_make_the_whole(back: int) -> None:
    net = _net()
    x = torch.rand(3, 1, 48, 48)
    trains = tuple(p for prefixes, _ in sections_of(net)[:back] for p in prefixes)
    depths = net.frozen(lambda name: name.startswith(trains))
    assert depths == (6 - back, max(2 - back, 0))
    torch.testing.assert_close(net.combine(net.features(x, depths), depths), net(x))


def test_sections_hold_every_parameter_once() -> None:
    net = _net()
    sections = sections_of(net)
    assert len(sections) == 6
    assert sections[0][0] == ("members.0.sections.head.", "members.1.sections.head.")
    assert sections[2][0] == ("members.0.sections.block3.",)  # the other has no third one
    for name, _ in net.named_parameters():
        assert sum(name.startswith(prefixes) for prefixes, _ in sections) == 1, name
    assert sum(n for _, n in sections) == sum(p.numel() for p in net.parameters())


def test_images_that_are_too_small_are_refused() -> None:
    with torch.device("meta"):
        net = Ensemble(EnsembleConfig(members=("vit_b_16",)), 3)
    with pytest.raises(UserError, match=r"vit_b_16 cannot take images of 150 .* model\.resize=224"):
        net.check(150)


@torch.no_grad()
def test_a_prediction_does_not_depend_on_its_batch_mates() -> None:
    net = _net()
    x = torch.rand(7, 1, 48, 48)
    alone = torch.cat([net(one[None]) for one in x])
    torch.testing.assert_close(net(x), alone, rtol=0, atol=1e-5)


def test_bands() -> None:
    with pytest.raises(ValueError, match="repeat takes 1 or 3 bands, not 4; use fold"):
        EnsembleConfig(in_channels=4)
    with torch.no_grad():
        assert _net(in_channels=4)(torch.rand(2, 4, 48, 48)).shape == (2, 3)
        assert _net(in_channels=3, grey="repeat")(torch.rand(2, 3, 48, 48)).shape == (2, 3)
