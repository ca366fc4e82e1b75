"""A whole module does here what it did there, or it is refused: never other logits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lensdist
from lensdist.cli import main
from lensdist.utils.torchvision_compat import import_torchvision
from tests.unit.test_weights_published import EnsembleModel as Published
from tests.unit.test_weights_published import backbone, images
from tests.unit.test_weights_recipe import CustomMAE, MAEClassifier

pytestmark = pytest.mark.unit

models = import_torchvision().models
Alter = Callable[[Any], Any]


@pytest.fixture(scope="module")
def resnet() -> Any:
    return backbone("resnet18")


@torch.no_grad()
def outcome(tmp_path: Path, module: nn.Module, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence with which `import` refuses a module; "" if it computes the same logits."""
    path, dest = tmp_path / "whole.pth", tmp_path / "export"
    torch.save(module, path)
    code = main(["import", str(path), "--out", str(dest), "--size", "64", "--resize", "none"])
    told = capsys.readouterr().err
    if code:
        assert (code, dest.exists(), len(told.strip().splitlines())) == (2, False, 1)
        return told
    x = images(2, 64)
    theirs = torch.load(path, weights_only=False)
    wanted = theirs.eval()(x.repeat(1, 3, 1, 1)).numpy()
    found = lensdist.load(dest).predict(x.numpy())["logits"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    return ""


class Halved(models.ResNet):  # type: ignore[misc, name-defined]
    """Of torchvision's class but for its forward."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) / 2


class Wrapper(nn.Module):
    """One network, and a forward that the file does not hold."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return -self.net(x)


class EnsembleModel(Published):
    """Of the published name, with more than the published one has."""

    share = 0.9

    def forward(self, x: Tensor) -> Tensor:
        return self.share * self.model1(x) + (1 - self.share) * self.model2(x)


class Weighted(EnsembleModel):
    """As above, by another name."""


def double(module: nn.Module, inputs: Any, output: Any = None) -> Any:
    return 2 * (inputs[0] if output is None else output)


def put(place: str, make: Callable[[Any], nn.Module]) -> Alter:
    """Another module, made of the old one, which leaves it its weights."""

    def alter(net: Any) -> Any:
        parent, _, name = place.rpartition(".")
        old = net.get_submodule(place)
        new = make(old).eval()
        new.load_state_dict(old.state_dict(), strict=False)
        setattr(net.get_submodule(parent), name, new)
        return net

    return alter


def tell(place: str, **attributes: Any) -> Alter:
    def alter(net: Any) -> Any:
        for name, value in attributes.items():
            setattr(net.get_submodule(place), name, value)
        return net

    return alter


def turn_blocks(net: Any) -> Any:
    net.layer1._modules = dict(reversed(net.layer1._modules.items()))
    return net


def turn_head(net: Any) -> Any:
    """The same weights by the same names, BatchNorm before ReLU."""
    order = ("0", "2", "1", "3", "4", "5", "6", "7", "8")
    net.fc._modules = {name: net.fc._modules[name] for name in order}
    return net


def no_statistics(net: Any) -> Any:
    return tell("bn1", track_running_stats=False, running_mean=None, running_var=None)(net)


def hook(where: str) -> Alter:
    def alter(net: Any) -> Any:
        getattr(net.layer2[0].conv1, where)(double)
        return net

    return alter


def of_class(kind: type) -> Alter:
    def alter(net: Any) -> Any:
        net.__class__ = kind
        return net

    return alter


def normed(norm: Callable[[nn.Module], nn.Module]) -> Alter:
    def alter(net: Any) -> Any:
        norm(net.layer1[0].conv1)
        return net

    return alter


def conv(**more: Any) -> Callable[[nn.Module], nn.Module]:
    settings = {"kernel_size": 7, "stride": 2, "padding": 3, "bias": False} | more
    return lambda _: nn.Conv2d(3, 64, **settings)  # type: ignore[arg-type]


REFUSED: dict[str, tuple[str, Alter]] = {
    "identity pooling": ("avgpool is of class", put("avgpool", lambda _: nn.Identity())),
    "average pooling": ("maxpool is of class", put("maxpool", lambda _: nn.AvgPool2d(3, 2, 1))),
    "pooled to 2 x 1": ("avgpool has output_size (2, 1)", tell("avgpool", output_size=(2, 1))),
    "pooling stride": ("maxpool has stride 1", tell("maxpool", stride=1)),
    "pooling kernel": ("maxpool has kernel_size 5", tell("maxpool", kernel_size=5, padding=2)),
    "stride": ("conv1 has stride (1, 1)", put("conv1", conv(stride=1))),
    "one stride": ("layer2.0.conv2 has stride (1, 2)", tell("layer2.0.conv2", stride=(1, 2))),
    "dilation": (
        "layer1.0.conv1 has padding (2, 2)",
        tell("layer1.0.conv1", dilation=(2, 2), padding=(2, 2)),
    ),
    "padding": ("conv1 has padding (1, 1)", put("conv1", conv(padding=1))),
    "leaky": ("its module relu is of class", put("relu", lambda _: nn.LeakyReLU(0.2))),
    "gelu": ("layer3.1.relu is of class", put("layer3.1.relu", lambda _: nn.GELU())),
    "epsilon": ("bn1 has eps 0.5", tell("bn1", eps=0.5)),
    "no statistics": ("bn1 has track_running_stats False", no_statistics),
    "order of blocks": ("layer1 holds 1, 0", turn_blocks),
    "order of the head": ("fc holds 0, 2, 1", turn_head),
    "head's activation": (
        "fc.1 is of class torch.nn.modules.activation.Tanh",
        put("fc.1", lambda _: nn.Tanh()),
    ),
    "layer without weights": ("fc holds", tell("fc", more=nn.Softmax(1))),
    "layer in place of dropout": ("fc.3 is of class", put("fc.3", lambda _: nn.Sigmoid())),
    "hook": ("conv1 has forward hooks", hook("register_forward_hook")),
    "forward of one": ("'forward'", tell("layer1.1.relu", forward=F.silu)),
    "part of a forward": ("'_forward_impl'", tell("", _forward_impl=F.silu)),
    "subclass": ("network is of class", of_class(Halved)),
    "wrapper": ("network is of class", Wrapper),
    "sequence": ("network is of class", lambda net: nn.Sequential(net, nn.Softmax(1))),
    "weight norm": ("has forward pre hooks", normed(torch.nn.utils.weight_norm)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_computations_are_refused_by_name(
    name: str, resnet: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    why, alter = REFUSED[name]
    sentence = outcome(tmp_path, alter(copy.deepcopy(resnet)), capsys)
    assert why in sentence, sentence


def same_block_twice(net: Any) -> Any:
    net.layer1[1] = net.layer1[0]
    return net


def without_later_attributes(net: Any) -> Any:
    """As older versions of torch and torchvision wrote it."""
    for module in net.modules():
        for name in ("padding_mode", "_reversed_padding_repeated_twice", "memory_efficient"):
            vars(module).pop(name, None)
        if isinstance(module, nn.ReLU):
            module.threshold = module.value = 0  # type: ignore[assignment]
    return net


@pytest.mark.parametrize(
    "alter",
    [
        lambda net: net.train(),
        lambda net: nn.DataParallel(net),
        tell("fc.3", p=0.9),
        tell("relu", inplace=False),
        tell("bn1", momentum=None),
        put("avgpool", lambda _: nn.AdaptiveAvgPool2d(1)),
        put("maxpool", lambda _: nn.MaxPool2d((3, 3), (2, 2), (1, 1))),
        put("conv1", conv(padding_mode="zeros")),
        same_block_twice,
        without_later_attributes,
    ],
)
def test_what_changes_nothing_is_imported(
    alter: Alter, resnet: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = outcome(tmp_path, alter(copy.deepcopy(resnet)), capsys)
    assert sentence == ""


@pytest.fixture(scope="module")
def densenet() -> Any:
    return backbone("densenet121", plain=True)


@pytest.mark.parametrize(
    ("why", "alter"),
    [
        ("denselayer1.relu1 is of class", put(
            "features.denseblock1.denselayer1.relu1", lambda _: nn.SiLU())),
        ("norm5 has eps", tell("features.norm5", eps=0.1)),
        ("transition1.pool is of class", put(
            "features.transition1.pool", lambda _: nn.MaxPool2d(2, 2))),
        ("features holds", tell("features", last=nn.Softmax(1))),
        ("", tell("features.denseblock2.denselayer3", drop_rate=0.4, memory_efficient=True)),
    ],
)  # fmt: skip
def test_a_densenet(
    why: str, alter: Alter, densenet: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = outcome(tmp_path, alter(copy.deepcopy(densenet)), capsys)
    assert (why in sentence) if why else sentence == ""


def test_an_ensemble(resnet: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file says the class's name, not how it combines its members: named as assumed."""
    pair = (resnet, copy.deepcopy(resnet))
    assert "of class" in outcome(tmp_path, Weighted(*pair), capsys)
    more = EnsembleModel(*pair)
    more.share = 0.3
    assert "the attribute 'share'" in outcome(tmp_path, more, capsys)
    assert "model1.bn1 has eps" in outcome(
        tmp_path, tell("model1.bn1", eps=0.1)(Published(*copy.deepcopy(pair))), capsys
    )
    assert outcome(tmp_path, Published(*pair), capsys) == ""
    facts = lensdist.load(tmp_path / "export").description
    assert "the mean of the members' logits, as in the recipe's EnsembleModel" in facts["assumed"]


def test_the_recipes_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def classifier(**attributes: Any) -> nn.Module:
        module = MAEClassifier(CustomMAE(fixed=True, dim=64, depth=2, mlp=48))
        tell("transformer.layers.1.self_attn", **attributes)(module)
        return module

    gelu = classifier()
    gelu.transformer.layers[0].activation = F.gelu  # type: ignore[union-attr, index]
    head = put("cls_head.1", lambda _: nn.Tanh())(classifier())
    mae = CustomMAE(fixed=False, dim=128, depth=1, mlp=48)
    del mae.fixed, mae.dim
    for name, value in (("img_size", 64), ("patch_size", 8), ("num_patches", 64)):
        setattr(mae, name, value)  # as published
    mae.embed_dim = 128  # type: ignore[assignment]
    torch.save(mae, tmp_path / "mae.pth")
    assert main(["import", str(tmp_path / "mae.pth"), "--out", str(tmp_path / "mae")]) == 0
    capsys.readouterr()
    for module, why in (
        (classifier(num_heads=4), "self_attn has num_heads 4, and 8"),
        (classifier(add_zero_attn=True), "add_zero_attn"),
        (tell("transformer.layers.0", norm_first=True)(classifier()), "norm_first"),
        (tell("transformer.layers.1.norm2", eps=1e-2)(classifier()), "norm2 has eps"),
        (gelu, "activation torch._C._nn.gelu"),
        (head, "cls_head.1 is of class"),
        (tell("decoder.2", stride=(1, 2))(mae), "decoder.2 has stride (1, 2)"),
        (Wrapper(classifier()), "no network that can be imported"),
    ):
        path = tmp_path / "whole.pth"
        torch.save(module, path)
        assert main(["import", str(path), "--out", str(tmp_path / "export")]) == 2
        assert why in capsys.readouterr().err
