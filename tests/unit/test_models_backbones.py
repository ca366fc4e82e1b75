"""torchvision's networks, cut into sections: the same function, under names by section."""

from __future__ import annotations

import pytest
import torch

from lensdist.models.backbones import Backbone, fold
from lensdist.models.config import EnsembleConfig
from lensdist.models.ensemble import Ensemble
from lensdist.utils.errors import UserError
from lensdist.utils.torchvision_compat import import_torchvision

pytestmark = pytest.mark.unit
SIX = ["stem", "block1", "block2", "block3", "block4", "head"]


def _theirs(name: str) -> torch.nn.Module:
    torch.manual_seed(3)
    net: torch.nn.Module = import_torchvision().models.get_model(name, weights=None, num_classes=7)
    for module in net.modules():  # statistics that are not 0 and 1, so that a mix-up shows
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("densenet121", SIX), ("resnet18", SIX), ("resnet50", SIX),
        ("shufflenet_v2_x0_5", ["trunk", "head"]), ("mobilenet_v3_small", ["trunk", "head"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("grey", ["repeat", "fold"])
def test_computes_what_torchvision_does(name: str, sections: list[str], grey: str) -> None:
    net = _theirs(name)
    cfg = EnsembleConfig(members=(name,), head_dims=(), grey=grey)
    ours = Backbone(name, cfg, 7)
    assert list(ours.sections) == sections
    ours.load_state_dict(ours.adopt(net.state_dict()))
    ours.eval()
    x = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        expected = net(x.expand(-1, 3, -1, -1))
        found = ours(ours.prepare(x))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_folded_kernel_answers_to_the_mean_of_the_bands() -> None:
    kernels = torch.randn(4, 3, 5, 5)
    x = torch.rand(2, 4, 9, 9)
    repeated = torch.nn.functional.conv2d(x.mean(1, keepdim=True).expand(-1, 3, -1, -1), kernels)
    torch.testing.assert_close(torch.nn.functional.conv2d(x, fold(kernels, 4)), repeated)


def test_the_recipe_s_head() -> None:
    ours = Backbone("resnet18", EnsembleConfig(members=("resnet18",)), 3)
    kinds = [type(m).__name__ for m in ours.sections["head"]]
    assert kinds == [
        "Linear", "ReLU", "BatchNorm1d", "Dropout", "Linear", "ReLU", "BatchNorm1d", "Dropout",
        "Linear",
    ]  # fmt: skip
    head = ours.sections["head"]
    assert [(m.in_features, m.out_features) for m in head if isinstance(m, torch.nn.Linear)] == [
        (512, 1024), (1024, 64), (64, 3),
    ]  # fmt: skip
    assert {m.p for m in head if isinstance(m, torch.nn.Dropout)} == {0.33}
    # The names under which published weights have it.
    assert ours.names["fc.8.weight"] == "sections.head.8.weight"
    assert ours.names["layer1.0.conv1.weight"] == "sections.block1.0.conv1.weight"


def test_imagenet_s_last_layer_is_left_out() -> None:
    cfg = EnsembleConfig(members=("resnet18",), grey="fold")
    ours = Backbone("resnet18", cfg, 3)
    adopted = ours.adopt(_theirs("resnet18").state_dict(), head=False)
    assert not [name for name in adopted if ".head." in name]
    assert adopted["sections.stem.0.weight"].shape == (64, 1, 7, 7)
    own = set(ours.state_dict())
    assert own - set(adopted) == {name for name in own if ".head." in name}


def test_weights_of_another_network_are_refused() -> None:
    ours = Backbone("resnet18", EnsembleConfig(members=("resnet18",), head_dims=()), 7)
    state = _theirs("resnet18").state_dict()
    with pytest.raises(UserError, match=r"not those of resnet18: missing conv1\.weight, .* more"):
        ours.adopt(_theirs("densenet121").state_dict())
    with pytest.raises(UserError, match="unknown layer9"):
        ours.adopt({**state, "layer9": torch.zeros(1)})
    with pytest.raises(UserError, match=r"fc\.weight is \(5, 512\), not \(7, 512\)"):
        ours.adopt({**state, "fc.weight": torch.zeros(5, 512), "fc.bias": torch.zeros(5)})
    with pytest.raises(UserError, match=r"missing fc\.bias"):
        ours.adopt({k: v for k, v in state.items() if k != "fc.bias"})


def test_unknown_names_are_told() -> None:
    with pytest.raises(
        UserError, match=r"'resnet19' is neither lensnet nor .* resnet101, resnet152"
    ):
        Backbone("resnet19", EnsembleConfig(members=("resnet19",)), 3)
    with pytest.raises(UserError, match="'squeezenet1_0' is neither lensnet nor"):
        Backbone("squeezenet1_0", EnsembleConfig(members=("squeezenet1_0",)), 3)


FAMILIES = (
    "alexnet", "convnext_tiny", "densenet161", "efficientnet_b0", "efficientnet_v2_s",
    "maxvit_t", "mobilenet_v2", "mobilenet_v3_small",
    "regnet_x_400mf", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "swin_t", "swin_v2_t",
    "vgg11", "vit_b_16", "wide_resnet50_2",
)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_torchvision_can_be_a_member(name: str) -> None:
    with torch.device("meta"):
        net = Ensemble(EnsembleConfig(members=(name,), resize=224), 3)
    net.check(150)
