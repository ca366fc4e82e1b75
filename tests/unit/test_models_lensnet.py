"""The small network for fitted lenses, as a member like any other."""

from __future__ import annotations

import pytest
import torch

from lensdist.models.backbones import Backbone
from lensdist.models.config import EnsembleConfig
from lensdist.models.ensemble import Ensemble, sections_of

pytestmark = pytest.mark.unit
CFG = EnsembleConfig(members=("lensnet",), head_dims=(), head_dropout=0.2)


def test_size_and_sections() -> None:
    net = Ensemble(CFG, 3, bands=2)
    assert sum(p.numel() for p in net.parameters()) == 17_219
    assert [prefixes for prefixes, _ in sections_of(net)] == [
        (f"members.0.sections.{name}.",) for name in ("head", "block2", "block1", "stem")
    ]
    assert net(torch.rand(4, 2, 75, 75)).shape == (4, 3)


def test_pooled_features_are_normalised() -> None:
    torch.manual_seed(0)
    member = Backbone("lensnet", CFG, 3, bands=2).train()
    member.sections["block2"][-1].p = 0.0
    x = member.prepare(torch.randn(64, 2, 75, 75))
    for name in ("stem", "block1", "block2"):
        x = member.sections[name](x)
    torch.testing.assert_close(x.detach().mean(0), torch.zeros(32), rtol=0, atol=1e-5)
    # Features that hardly differ between images are not blown up beyond BatchNorm's epsilon.
    assert float(x.detach().std(0).max()) < 1.1


def test_mixes_with_torchvision() -> None:
    cfg = CFG.model_copy(update={"members": ("lensnet", "shufflenet_v2_x0_5"), "grey": "fold"})
    assert Ensemble(cfg, 3, bands=2).eval()(torch.rand(2, 2, 75, 75)).shape == (2, 3)
