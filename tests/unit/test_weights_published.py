"""Published torchvision networks: what they did where they come from, they do here."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import lensdist
from lensdist.cli import main
from lensdist.utils.errors import UserError
from lensdist.utils.files import sha256
from lensdist.utils.torchvision_compat import import_torchvision
from lensdist.weights import architectures
from lensdist.weights.choices import Choices
from lensdist.weights.published import recognise

pytestmark = pytest.mark.unit

models = import_torchvision().models


def images(n: int, size: int) -> Tensor:
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(n))


def randomise(model: nn.Module) -> Any:
    """Weights and running statistics as after a training, and dropout off."""
    torch.manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            value.normal_()
        elif name.endswith("num_batches_tracked"):
            value.fill_(7)
        elif value.dim() == 1:
            value.add_(0.1 * torch.randn_like(value))
    return model.eval()


def backbone(name: str, classes: int = 3, plain: bool = False) -> Any:
    """A torchvision network with its last layer replaced as in the notebook."""
    net = models.get_model(name, weights=None)
    place = "classifier" if name.startswith("dense") else "fc"
    width = getattr(net, place).in_features
    layers = [nn.Linear(width, 1024), nn.ReLU(), nn.BatchNorm1d(1024), nn.Dropout(p=0.33)]
    layers += [nn.Linear(1024, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Dropout(p=0.33)]
    layers += [nn.Linear(64, classes)]
    setattr(net, place, nn.Linear(width, classes) if plain else nn.Sequential(*layers))
    return randomise(net)


class EnsembleModel(nn.Module):
    """As published."""

    def __init__(self, model1: nn.Module, model2: nn.Module) -> None:
        super().__init__()
        self.model1 = model1
        self.model2 = model2

    def forward(self, x: Tensor) -> Tensor:
        return (self.model1(x) + self.model2(x)) / 2


def imported(tmp_path: Path, value: Any, *words: str) -> Any:
    path, dest = tmp_path / "published.pth", tmp_path / "export"
    torch.save(value, path)
    return imported_file(path, dest, *words)


def imported_file(path: Path, dest: Path, *words: str) -> Any:
    assert main(["import", str(path), "--out", str(dest), *words]) == 0
    assert {p.name for p in path.parent.iterdir()} == {dest.name, path.name}
    return lensdist.load(dest)


def refused(tmp_path: Path, value: Any, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The sentence; exit code 2 and nothing written are checked."""
    path, dest = tmp_path / "published.pth", tmp_path / "export"
    torch.save(value, path)
    assert main(["import", str(path), "--out", str(dest), *words]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["published.pth"]
    sentence = capsys.readouterr().err
    assert len(sentence.strip().splitlines()) == 1
    return sentence


@torch.no_grad()
@pytest.mark.parametrize("whole", [True, False])
def test_the_published_ensemble_predicts_what_it_did(tmp_path: Path, whole: bool) -> None:
    theirs = EnsembleModel(backbone("densenet121"), backbone("resnet18")).eval()
    loaded = imported(tmp_path, theirs if whole else {"model_state_dict": theirs.state_dict()})
    x = images(2, 150)
    seen = F.interpolate(x.repeat(1, 3, 1, 1), (224, 224), mode="bilinear", antialias=True)
    found = loaded.predict(x.numpy())["logits"]
    np.testing.assert_allclose(found, theirs(seen).numpy(), rtol=1e-4, atol=1e-4)
    assert loaded.labels == ("no", "sphere", "vort")
    facts = loaded.description
    assert facts["task"] == "common"
    assert facts["preset"] == "imported"
    assert facts["init"] == "published"
    assert facts["preprocessing"]["scale"] == "none"
    assert facts["model"]["members"] == ["densenet121", "resnet18"]
    assert facts["model"]["head_dims"] == [1024, 64]
    assert facts["source"]["file"] == "published.pth"
    assert facts["source"]["sha256"] == sha256(tmp_path / "published.pth")
    assert (f"{__name__}.EnsembleModel" in facts["source"]["classes"]) == whole


def test_the_layers_of_a_long_head_are_in_their_order() -> None:
    widths = (512, 256, 128, 64, 5)  # the fourth linear layer is `fc.12`, which sorts before `fc.4`
    weights = {
        f"fc.{4 * i}.weight": torch.empty(after, before)
        for i, (before, after) in enumerate(pairwise(widths))
    }
    first = {"conv1.weight": torch.empty(64, 3, 7, 7)}
    assert architectures.head_of(first | weights) == ((256, 128, 64), 5, 3)


@torch.no_grad()
def test_a_single_network_with_a_single_layer_in_a_safetensors_file(tmp_path: Path) -> None:
    theirs = backbone("resnet18", classes=2, plain=True)
    words = ("--labels", "smooth, lumpy", "--size", "64", "--resize", "none")
    save_file(theirs.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})  # as timm does
    loaded = imported_file(tmp_path / "model.safetensors", tmp_path / "export", *words)
    x = images(3, 64)
    wanted = theirs(x.repeat(1, 3, 1, 1)).numpy()
    np.testing.assert_allclose(loaded.predict(x.numpy())["logits"], wanted, rtol=1e-4, atol=1e-4)
    assert loaded.labels == ("smooth", "lumpy")


@torch.no_grad()
def test_a_network_for_one_band(tmp_path: Path) -> None:
    theirs = backbone("resnet18")
    theirs.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    loaded = imported(tmp_path, theirs.state_dict(), "--size", "64", "--resize", "none")
    x = images(3, 64)
    found = loaded.predict(x.numpy())["logits"]
    np.testing.assert_allclose(found, theirs(x).numpy(), rtol=1e-4, atol=1e-4)


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As in files from before PyTorch 0.4: dots in DenseNet's names, no counters."""
    out = {}
    for name, value in state.items():
        if "denselayer" in name:
            for part in ("norm1", "norm2", "conv1", "conv2"):
                name = name.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        if not name.endswith("num_batches_tracked"):
            out[name] = value
    return out


@torch.no_grad()
def test_old_names_and_missing_counters() -> None:
    theirs = backbone("densenet121")
    old = old_names(theirs.state_dict())
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    x = images(1, 64).repeat(1, 3, 1, 1)
    network = recognise(old, Choices(size=64, resize=0)).network
    torch.testing.assert_close(network(x[:, :1]), theirs(x), rtol=1e-4, atol=1e-4)
    counters = {n: int(v) for n, v in network.state_dict().items() if "tracked" in n}
    assert counters
    assert set(counters.values()) == {0}
    both = {**theirs.state_dict(), **old}
    with pytest.raises(UserError, match="both old and new names"):
        recognise(both, Choices(size=64, resize=0))


@pytest.mark.parametrize("prefixes", [("densenet.", "resnet."), ("members.0.", "members.1.")])
def test_members_by_other_names(prefixes: tuple[str, str]) -> None:
    parts = (backbone("densenet121").state_dict(), backbone("resnet18").state_dict())
    state = {p + n: v for p, part in zip(prefixes, parts, strict=True) for n, v in part.items()}
    found = recognise(state)
    assert found.model.members == ("densenet121", "resnet18")  # type: ignore[union-attr]
    total = sum(v.numel() for v in found.network.state_dict().values())
    assert total == sum(v.numel() for v in state.values())


def test_every_architecture_is_told_apart() -> None:
    names = [*architectures._DENSENETS.values(), *architectures._RESNETS.values()]
    assert len(names) == len(set(names)) == 14
    for name in names:
        with torch.device("meta"):
            state = models.get_model(name, weights=None).state_dict()
        assert architectures.architecture_of(state) == name


@pytest.fixture(scope="module")
def resnet() -> dict[str, Tensor]:
    state: dict[str, Tensor] = backbone("resnet18").state_dict()
    return state


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    assert name in state
    return {n: v for n, v in state.items() if n != name}


def test_what_does_not_fit_is_refused_in_one_sentence(
    resnet: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases: list[tuple[dict[str, Any], str, tuple[str, ...]]] = [
        (resnet, "--labels names 2 (a, b)", ("--labels", "a,b")),
        (resnet, "names a class twice", ("--labels", "a,b,a")),
        (resnet, "one without a name", ("--labels", "a,b,")),
        (without(resnet, "layer3.1.bn2.running_var"), "missing", ()),
        ({**resnet, "layer3.1.extra.weight": torch.rand(3)}, "layer3.1.extra.weight", ()),
        ({**resnet, "fc.4.weight": torch.rand(64, 999)}, "fc.4.weight", ()),
        ({**resnet, "bn1.weight": torch.full((64,), torch.nan)}, "bn1.weight holds NaN", ()),
        (without(resnet, "layer1.0.conv2.weight"), "no network that can be imported", ()),
        ({"mix": torch.rand(2), **{f"a.{k}": v for k, v in resnet.items()}}, "'mix'", ()),
        (models.alexnet(weights=None).state_dict(), "features.0.weight", ()),
        (models.resnet18(weights=None).state_dict(), "has 1000 classes, but", ()),
        ({n: v for n, v in resnet.items() if n[:2] != "fc"}, "no fc layer", ()),
        ({**{f"a.{k}": v for k, v in resnet.items()},
          **{f"b.{k}": v for k, v in backbone("resnet18", 4).state_dict().items()}},
         "different heads", ()),
    ]  # fmt: skip
    for state, why, words in cases:
        assert why in refused(tmp_path, state, capsys, *words)


def test_a_destination_in_use_is_refused(
    resnet: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(resnet, tmp_path / "a.pth")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    assert main(["import", str(tmp_path / "a.pth"), "--out", str(tmp_path / "mine")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
