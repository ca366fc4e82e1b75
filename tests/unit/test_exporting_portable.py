"""ONNX and torch.export files compute what the model does, for any number of raw images."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from lensdist.data.config import PREPROCESS, PreprocessConfig
from lensdist.data.registered import registered
from lensdist.data.smooth import principal
from lensdist.data.transforms import Preprocess
from lensdist.export import portable
from lensdist.export.model import LoadedModel
from lensdist.export.onnxruntime import import_onnxruntime
from lensdist.export.portable import Portable, largest_difference, samples, write
from lensdist.models.classifier import Classifier
from lensdist.models.config import (
    ClassifierConfig,
    EnsembleConfig,
    MaeConfig,
    SuperResolverConfig,
)
from lensdist.models.ensemble import Ensemble
from lensdist.models.mae import MaskedAutoencoder, pixel_mask
from lensdist.models.super_resolution import SuperResolver
from lensdist.utils.errors import UserError

pytestmark = pytest.mark.unit

SIZE = {"image_size": 16, "patch_size": 4, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 16}
KINDS = ("onnx", "pt2")


def loaded(task: str, cfg: Any, scale: str, **more: Any) -> LoadedModel:
    torch.manual_seed(0)
    classes = {"finetune": Classifier, "common": Ensemble}
    net = MaskedAutoencoder(cfg) if task == "mae" else classes[task](cfg, 3)
    how = PreprocessConfig(scale=scale, shift=more.pop("shift", None))  # type: ignore[arg-type]
    smooth: Any = principal(torch.rand(20, 1, 16, 16), 4) if scale == "residual" else None
    if how.shift is not None:
        smooth = registered(torch.rand(20, 1, 16, 16), how.shift, 4, "noise")
    normalise = more.pop("normalise", False)
    preprocess = Preprocess(how, [5.0], [2.0], smooth, normalise)
    description = {
        "task": task, "labels": ["a", "b", "c"], "preprocessing": preprocess.state(),
        "model": cfg.model_dump(mode="json"), **more,
    }  # fmt: skip
    own = {PREPROCESS + k: v for k, v in preprocess.tensors().items()}
    return LoadedModel(description, {**net.state_dict(), **own}, "cpu")


def model(name: str) -> LoadedModel:
    mask = {"mask": {"ratio": 0.3, "informative": 0.5}}
    if name == "classifier":
        return loaded("finetune", ClassifierConfig(**SIZE, head_norm=True), "residual")
    if name == "registered":
        return loaded("finetune", ClassifierConfig(**SIZE, head_norm=True), "residual", shift=2)
    if name == "registered-mae":
        own = {"loss": "masked", **mask}
        return loaded("mae", MaeConfig(**SIZE, decoder_dim=16), "residual", shift=2, **own)
    if name == "normalised":
        return loaded("finetune", ClassifierConfig(**SIZE), "minmax", normalise=True)
    cfg = MaeConfig(**SIZE, decoder=name, decoder_dim=16)  # type: ignore[arg-type]
    loss = "masked" if name == "tokens" else "image"
    return loaded("mae", cfg, "asinh" if name == "tokens" else "minmax", loss=loss, **mask)


def run_file(
    kind: str, path: Path, inputs: list[npt.NDArray[Any]]
) -> tuple[npt.NDArray[Any], list[str]]:
    """As somebody without lensdist would: the output, and the inputs' names."""
    if kind == "onnx":
        session = import_onnxruntime().InferenceSession(path)
        names = [i.name for i in session.get_inputs()]
        return session.run(None, dict(zip(names, inputs, strict=True)))[0], names
    module = torch.export.load(path).module()
    return module(*map(torch.from_numpy, inputs)).detach().numpy(), ["image", "mask"][: len(inputs)]


# Graphs that fit fractions of a pixel take half a minute to make.
_PAIRS = [
    pytest.param(name, kind, marks=pytest.mark.long if name == "registered-mae" else ())
    for name in ("classifier", "registered", "registered-mae", "normalised", "upconv", "tokens")
    for kind in KINDS
]


@pytest.mark.parametrize(("name", "kind"), _PAIRS)
def test_any_number_of_raw_images(name: str, kind: str, tmp_path: Path) -> None:
    original = model(name)
    facts, run = write(original, kind, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [f"model.{kind}"]
    raw = 5 + 2 * np.random.default_rng(7).standard_normal((11, 1, 16, 16)).astype(np.float32)
    for n in (1, 4, 11):
        expected = original.predict(raw[:n])
        inputs = [raw[:n]] + ([expected["mask"]] if "mask" in expected else [])
        wanted = expected["recon" if "mask" in expected else "logits"]
        found, names = run_file(kind, tmp_path / f"model.{kind}", inputs)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(run(*inputs), found)
        assert names == list(facts["inputs"])
    assert np.ptp(wanted, 0).max() > 1e-3  # what does not depend on the image proves nothing
    assert largest_difference(original, run)[0] < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decoder", ["residual", "upconv"])
def test_super_resolution(decoder: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    cfg = SuperResolverConfig(
        image_size=15, factor=2, encoder=SIZE, decoder=decoder, width=4, depth=1, sigma=True
    )  # type: ignore[arg-type]
    net = SuperResolver(cfg)
    for parameter in net.decoder.out.parameters():  # which start at zero
        torch.nn.init.normal_(parameter, std=0.3)
    preprocess = Preprocess(PreprocessConfig(scale="minmax"), [5.0], [2.0])
    description = {
        "task": "sr", "labels": [], "preprocessing": preprocess.state(),
        "model": cfg.model_dump(mode="json"),
    }  # fmt: skip
    original = LoadedModel(description, net.state_dict(), "cpu")
    facts, run = write(original, kind, tmp_path)
    assert facts["outputs"]["enlarged"]["shape"][1:] == [1, 30, 30]
    difference, scale = largest_difference(original, run)
    assert 0 <= difference < 1e-4 < scale


def small_ensemble(combine: str) -> LoadedModel:
    """Two members whose torchvision networks have made way for a layer each: tracing those takes
    half a minute."""
    two = EnsembleConfig(
        members=("shufflenet_v2_x0_5",) * 2, image_size=16, resize=24, combine=combine
    )  # type: ignore[arg-type]
    found = loaded("common", two, "asinh")
    for member in cast(Ensemble, found.network).backbones:
        layers = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        member.sections = nn.ModuleDict(
            {"trunk": nn.Sequential(*layers), "head": nn.Sequential(nn.Flatten(), nn.Linear(4, 3))}
        )
    found.network.eval()
    return found


@pytest.mark.parametrize("combine", ["probabilities", "learned"])
def test_an_ensemble(combine: str, tmp_path: Path) -> None:
    original = small_ensemble(combine)
    _, run = write(original, "onnx", tmp_path)
    difference, scale = largest_difference(original, run)
    assert 0 <= difference < 1e-5 < scale


def test_a_network_of_torchvision(tmp_path: Path) -> None:
    cfg = EnsembleConfig(members=("resnet18",), image_size=32, head_dims=(8,), grey="fold")
    original = loaded("common", cfg, "minmax")
    _, run = write(original, "pt2", tmp_path)
    difference, scale = largest_difference(original, run)
    assert 0 <= difference < 1e-5 < scale


def test_tokens_say_how_many_patches_a_mask_hides(tmp_path: Path) -> None:
    original = model("tokens")
    facts, run = write(original, "pt2", tmp_path)
    assert facts["hidden_patches"] == 4  # 0.3 of 16, rounded down
    image, mask = (x.numpy() for x in samples(original, 3, 1).values())
    other = np.roll(mask, 1, axis=1)
    drawn = run(image, other)
    hidden = pixel_mask(torch.from_numpy(other), 4).numpy()
    shown = np.abs(drawn - image)
    assert shown[~hidden].max() < 1e-4  # its loss is of hidden pixels: the others are the image's
    assert shown[hidden].max() > 1e-2
    assert np.abs(drawn - run(image, mask)).max() > 1e-2


def test_our_pt2_is_read_without_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = model("classifier")
    _, run = write(original, "pt2", tmp_path)
    assert zipfile.is_zipfile(tmp_path / "model.pt2")

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("unpickled")

    for name in ("torch.load", "pickle.loads", "pickle.load", "torch._C._pickle_load_obj"):
        monkeypatch.setattr(name, never)
    module = torch.export.load(tmp_path / "model.pt2").module()
    image = samples(original, 5, 1)["image"]
    np.testing.assert_array_equal(module(image).detach().numpy(), run(image.numpy()))


def test_the_largest_difference_is_found(tmp_path: Path) -> None:
    original = model("classifier")
    whole = Portable(original).eval().requires_grad_(False)

    def off(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        found = whole(torch.from_numpy(image)).numpy()
        found[-1, 1] += 0.25 if len(image) == 3 else 0.0
        return found

    difference, scale = largest_difference(original, off, (1, 3, 2))
    assert difference == pytest.approx(0.25, abs=1e-5)
    images = [samples(original, n, seed)["image"].numpy() for seed, n in ((1, 1), (2, 3), (3, 2))]
    assert scale == max(np.abs(original.predict(x)["logits"]).max() for x in images)
    for wrong in (lambda x: off(x)[:, :1], lambda x: off(x) * np.nan):
        assert largest_difference(original, wrong)[0] == float("inf")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = "onnxruntime"
    monkeypatch.setattr(portable, "find_spec", lambda name: None if name == gone else object())
    with pytest.raises(UserError, match=r"needs onnxruntime; pip install 'lensdist\[export\]'"):
        portable.require("onnx")
    portable.require("pt2")
    portable.require("safetensors")
