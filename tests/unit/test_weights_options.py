"""What a weight file does not say: options say it, and what is assumed in their place is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lensdist.cli import main
from lensdist.evaluate.run import open_subject
from tests.unit.test_weights_published import backbone, imported, refused
from tests.unit.test_weights_recipe import CustomMAE

pytestmark = pytest.mark.unit

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = ("--size", "32", "--resize", "none")


@pytest.fixture(scope="module")
def resnet() -> Any:
    return backbone("resnet18", plain=True)


def columns(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None]


def scaled(x: Tensor) -> Tensor:
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return (x - low) / (high - low)


@torch.no_grad()
@pytest.mark.parametrize(
    ("words", "seen"),
    [
        (("--preprocess", "imagenet"), lambda x: (x - columns(MEAN)) / columns(STD)),
        (("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"),
         lambda x: (x - columns(MEAN)) / columns(STD)),
        (("--preprocess", "minmax"), scaled),
        (("--preprocess", "minmax", "--mean=-0.5", "--std", "2"), lambda x: (scaled(x) + 0.5) / 2),
        (("--bands", "3", "--preprocess", "imagenet"),
         lambda x: (x - columns(MEAN)) / columns(STD)),
        (("--bands", "3"), lambda x: x),
    ],
)  # fmt: skip
def test_preprocessing_is_part_of_the_export(
    words: tuple[str, ...], seen: Any, resnet: Any, tmp_path: Path
) -> None:
    loaded = imported(tmp_path, resnet.state_dict(), *SMALL, *words)
    bands = 3 if "--bands" in words else 1
    x = 3 * torch.rand(3, bands, 32, 32)
    wanted = resnet(seen(x.expand(-1, 3, -1, -1))).numpy()
    np.testing.assert_allclose(loaded.predict(x.numpy())["logits"], wanted, rtol=1e-4, atol=1e-5)


def test_an_imported_network_is_evaluated(resnet: Any, tmp_path: Path, tiny_set: Path) -> None:
    words = ("--size", "64", "--resize", "none", "--labels", "no_sub,cdm,axion")
    loaded = imported(tmp_path, resnet.state_dict(), *words, "--preprocess", "imagenet")
    task, test = (subject := open_subject(tmp_path / "export", tiny_set)).task, [3, 5, 70]
    raw = torch.from_numpy(np.load(tiny_set / "images.npy", mmap_mode="r")[test]).float()
    with torch.no_grad():
        found = subject.model.network(task.preprocess(raw))
    np.testing.assert_allclose(found, loaded.predict(raw.numpy())["logits"], atol=1e-5)
    seen = (raw.expand(-1, 3, -1, -1) - columns(MEAN)) / columns(STD)
    np.testing.assert_allclose(found, resnet(seen).detach(), rtol=1e-4, atol=1e-5)


def test_what_is_assumed_is_said_and_kept(
    resnet: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = imported(tmp_path, resnet.state_dict()).description
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(" INFO assumed: ")[2] for line in told] == facts["assumed"]
    for line, part in zip(
        told,
        (
            "resnet18 of torchvision, strides, pooling, activations and the epsilon of BatchNorm",
            "--size 150",
            "--resize 224",
            "--labels no,sphere,vort",
            "--preprocess none",
            "no --mean and --std",
            "--bands 1: bands of the images on disk, repeated three times",
        ),
        strict=True,
    ):
        assert part in line


def test_what_is_given_is_not_assumed(
    resnet: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--labels", "a,b,c", "--bands", "3", "--preprocess", "none", "--mean", "0")
    facts = imported(tmp_path, resnet, *SMALL, *words, "--std", "1").description
    assert facts["assumed"] == []
    assert capsys.readouterr().err == ""


def test_options_that_do_not_fit_are_refused_in_one_sentence(
    resnet: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = resnet.state_dict()
    mae = CustomMAE(fixed=True, dim=128, depth=1, mlp=48).state_dict()
    cases: list[tuple[dict[str, Tensor], str, tuple[str, ...]]] = [
        (state, "--mean and --std need each other", ("--mean", "0.5")),
        (state, "--mean holds 2 numbers", ("--mean", "1,2", "--std", "1")),
        (state, "leave out --mean", ("--preprocess", "imagenet", "--mean", "1", "--std", "1")),
        (state, "first layer is for 3 bands", ("--bands", "2")),
        (state, "--bands 0", ("--bands", "0")),
        (mae, "--preprocess imagenet", ("--preprocess", "imagenet")),
        (mae, "leave out --size, --bands and --resize", ("--resize", "100")),
        (mae, "leave out --size, --bands and --resize", ("--bands", "3")),
    ]
    for tensors, why, words in cases:
        assert why in refused(tmp_path, tensors, capsys, *words)


@pytest.mark.parametrize("words", [
    ("--mean", "a"), ("--mean", "1,,2"), ("--mean", "nan"), ("--std", "inf"), ("--std", "0"),
    ("--std", "-1,1,1"), ("--bands", "x"), ("--preprocess", "log"),
    ("--size", "x"), ("--resize", "-1"), ("--resize", "99999"),
])  # fmt: skip
def test_options_are_numbers(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["import", "a.pth", "--out", "b", *words])
    assert caught.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_networks_of_other_normalisations_do_not_become_one(
    resnet: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, words in (("a", ()), ("b", ("--preprocess", "imagenet"))):
        (tmp_path / name).mkdir()
        imported(tmp_path / name, resnet.state_dict(), *SMALL, *words)
    exports = [str(tmp_path / name / "export") for name in "ab"]
    assert main(["export", *exports, "--out", str(tmp_path / "both")]) == 2
    assert "preprocessing" in capsys.readouterr().err
