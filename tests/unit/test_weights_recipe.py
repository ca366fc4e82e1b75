"""The recipe's published autoencoder and classifier, in networks whose attention is right."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lensdist.export.artifact import read_export
from lensdist.models.config import EncoderConfig
from lensdist.models.vit import Encoder
from lensdist.tasks.encoder import encoder_of
from lensdist.utils.errors import UserError
from lensdist.weights.files import read_weights
from lensdist.weights.published import recognise
from tests.unit.test_weights_published import images, imported, randomise, refused, without

pytestmark = pytest.mark.unit


class CustomMAE(nn.Module):
    """As published; `fixed` has attention within an image, and tokens where they belong."""

    def __init__(self, fixed: bool, dim: int = 512, depth: int = 6, mlp: int = 1024) -> None:
        super().__init__()
        self.fixed, self.dim = fixed, dim
        self.patch_embed = nn.Conv2d(1, dim, kernel_size=8, stride=8)
        self.pos_embed = nn.Parameter(torch.randn(1, 64, dim))
        layer = nn.TransformerEncoderLayer(dim, 8, mlp, dropout=0.1, batch_first=fixed)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        up = dim // 2
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(dim, up, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(up, up // 2, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(up // 2, up // 4, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(up // 4, 1, 3, 1, 1),
        )  # fmt: skip

    def tokens(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        out: Tensor = self.encoder(patches)
        return out

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x)
        tokens = tokens.transpose(1, 2) if self.fixed else tokens
        out: Tensor = self.decoder(tokens.reshape(len(x), self.dim, 8, 8))
        return out


class MAEClassifier(nn.Module):
    """As published, on an encoder with attention within an image."""

    def __init__(self, mae: CustomMAE) -> None:
        super().__init__()
        self.encoder, self.pos_embed, self.transformer = mae.patch_embed, mae.pos_embed, mae.encoder
        widths = [mae.dim, 256, 128, 64, 10, 3]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.cls_head = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        patches = self.encoder(x).flatten(2).transpose(1, 2) + self.pos_embed
        out: Tensor = self.cls_head(self.transformer(patches).mean(1))
        return out


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_a_postnorm_encoder_is_that_of_pytorch(training: bool) -> None:
    """In eval mode PyTorch takes a fused path of its own; without dropout both must agree."""
    theirs = randomise(CustomMAE(fixed=True, dim=128, depth=3, mlp=48)).train(training)
    for module in theirs.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0
    ours = recognise(theirs.state_dict()).network
    x = images(5, 64)
    torch.testing.assert_close(ours.encoder(x), theirs.tokens(x), rtol=1e-5, atol=2e-6)
    nothing = torch.zeros(5, 64, dtype=torch.bool)
    torch.testing.assert_close(ours(x, nothing), theirs(x), rtol=1e-5, atol=2e-6)


@torch.no_grad()
def test_the_published_autoencoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = randomise(CustomMAE(fixed=False))
    loaded = imported(tmp_path, theirs.state_dict())
    assert "fine-tune before use" in capsys.readouterr().err
    facts = json.loads((tmp_path / "export" / "config.json").read_text())
    assert "fine-tune before use" in facts["note"]
    assert "scrambled" in facts["note"]
    assert facts["labels"] == []
    assert facts["preprocessing"]["scale"] == "minmax"
    fixed = CustomMAE(fixed=True).eval()
    fixed.load_state_dict(theirs.state_dict())
    x = loaded.preprocess(images(3, 64))
    nothing = torch.zeros(3, 64, dtype=torch.bool)
    torch.testing.assert_close(loaded.network(x, nothing), fixed(x), rtol=1e-5, atol=5e-6)
    assert loaded.predict(images(3, 64).numpy())["recon"].shape == (3, 1, 64, 64)
    wanted = EncoderConfig(block="postnorm", dropout=0.3)
    _, weights = encoder_of(tmp_path / "export", read_export(tmp_path / "export"), wanted)
    Encoder(wanted).load_state_dict(weights)
    with pytest.raises(UserError, match=r"set model\.block=postnorm"):
        encoder_of(tmp_path / "export", read_export(tmp_path / "export"), EncoderConfig())


@torch.no_grad()
def test_the_published_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = randomise(MAEClassifier(CustomMAE(fixed=True)))
    note = recognise(theirs.state_dict()).note
    assert note is not None  # a state dict does not tell batch_first
    assert "attention across the images" in note
    loaded = imported(tmp_path, theirs)
    assert "WARNING" not in capsys.readouterr().err  # of a whole module batch_first is known
    x = 4 * images(3, 64)
    found = loaded.predict(x.numpy())["logits"]
    np.testing.assert_allclose(found, theirs(x).numpy(), rtol=1e-5, atol=1e-5)
    assert loaded.labels == ("axion", "no_sub", "cdm")
    assert loaded.description["task"] == "finetune"
    assert loaded.description["model"]["head_dims"] == [256, 128, 64, 10]
    assert loaded.description["preprocessing"]["scale"] == "none"  # as the notebook fed it


def test_one_layer_with_attention_across_images_is_noted(tmp_path: Path) -> None:
    theirs = MAEClassifier(CustomMAE(fixed=True, dim=128, depth=2, mlp=48))
    theirs.transformer.layers[1].self_attn.batch_first = False
    torch.save(theirs, tmp_path / "mixed.pth")
    file = read_weights(tmp_path / "mixed.pth")
    note = recognise(file.tensors, None, file.module).note
    assert note is not None
    assert "attention across the images" in note


def test_the_recipes_networks_with_something_amiss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mae = CustomMAE(fixed=True, dim=128, depth=2, mlp=48)
    state, head = mae.state_dict(), MAEClassifier(mae).state_dict()
    cases: list[tuple[dict[str, Tensor], str, tuple[str, ...]]] = [
        (without(state, "decoder.4.bias"), "decoder.4.bias are missing", ()),
        ({**state, "encoder.norm.weight": torch.rand(128)}, "encoder.norm.weight are unknown", ()),
        ({**state, "pos_embed": torch.rand(1, 63, 128)}, "do not fit", ()),
        ({**state, "pos_embed": torch.rand(3)}, "does not have 3 axes", ()),
        ({**state, "decoder.2.weight": torch.rand(9, 9, 4, 4)}, "do not fit", ()),
        (without(state, "encoder.layers.0.linear1.weight"), "linear1.weight is missing", ()),
        (state, "leave out --labels", ("--labels", "a,b")),
        (state, "images of 64 pixels", ("--size", "150")),
        (without(head, "cls_head.4.weight"), "unknown", ()),
        ({n: v for n, v in head.items() if n[:3] != "cls"}, "no decoder and no cls_head", ()),
        (head, "--labels names 2", ("--labels", "a,b")),
    ]
    for tensors, why, words in cases:
        assert why in refused(tmp_path, tensors, capsys, *words)


def test_weights_of_half_precision_become_whole(tmp_path: Path) -> None:
    mae = CustomMAE(fixed=True, dim=128, depth=1, mlp=48).bfloat16()
    imported(tmp_path, mae.state_dict())
    _, weights = read_export(tmp_path / "export")
    assert {v.dtype for v in weights.values()} == {torch.float32}
    assert torch.equal(weights["encoder.position"], mae.pos_embed.detach().float())
