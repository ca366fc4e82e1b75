"""ImageNet weights: found, fetched or asked for; never taken for what they are not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file

from lensdist.utils.errors import UserError
from lensdist.utils.files import sha256
from lensdist.utils.torchvision_compat import import_torchvision
from lensdist.weights import imagenet
from lensdist.weights.imagenet import imagenet_state

pytestmark = pytest.mark.unit


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's cache, empty, and no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def offline(url: str, dst: str, *args: Any, **kwargs: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    path = folder / "resnet18.pth"
    torch.save(import_torchvision().models.resnet18(weights=None).state_dict(), path)
    named = folder / f"resnet18-{sha256(path)[:8]}.pth"
    shutil.copy(path, named)
    return named


@pytest.fixture
def published(file: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address under which the file is published."""
    url = f"https://download.pytorch.org/models/{file.name}"
    monkeypatch.setattr(imagenet, "_url", lambda architecture: url)
    return url


def test_the_addresses_are_torchvisions() -> None:
    base = "https://download.pytorch.org/models/"
    assert imagenet._url("densenet161") == base + "densenet161-8d451a50.pth"
    assert imagenet._url("resnet50") == base + "resnet50-0676ba61.pth"
    for name in ("resnet19", "vit_h_14"):
        with pytest.raises(UserError, match="init=random"):
            imagenet._url(name)


def test_a_file_is_read(cache: Path, file: Path, tmp_path: Path) -> None:
    wanted = torch.load(file)
    other = Path(shutil.copy(file, tmp_path / "mine.pth"))  # no hash in its name
    save_file(wanted, tmp_path / "mine.safetensors")
    for path in (file, other, tmp_path / "mine.safetensors"):
        found = imagenet_state("resnet18", path)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[n], v) for n, v in wanted.items())
    assert not cache.exists()


def test_without_network_a_sentence_says_what_to_do(cache: Path) -> None:
    with pytest.raises(UserError) as caught:
        imagenet_state("densenet161")
    for part in (
        "https://download.pytorch.org/models/densenet161-8d451a50.pth",
        str(cache / "densenet161-8d451a50.pth"),
        "weights.densenet161=PATH",
        "init=random",
        "no route to host",
    ):
        assert part in str(caught.value)


def test_the_cache_is_used(cache: Path, file: Path, published: str) -> None:
    cache.mkdir(parents=True)
    shutil.copy(file, cache)
    assert len(imagenet_state("resnet18")) == 122


def test_a_download_is_kept(
    cache: Path, file: Path, published: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(url: str, dst: str, hash_prefix: str | None, progress: bool) -> None:
        asked.append((url, hash_prefix))
        shutil.copy(file, dst)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        imagenet_state("resnet18")
    assert asked == [(published, sha256(file)[:8])]
    assert (cache / file.name).is_file()


def test_damage_is_noticed(cache: Path, file: Path, published: str, tmp_path: Path) -> None:
    cache.mkdir(parents=True)
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    for place in (cache, tmp_path):
        (place / file.name).write_bytes(data)
    for given in (None, tmp_path / file.name):
        with pytest.raises(UserError, match="is damaged"):
            imagenet_state("resnet18", given)


def test_a_file_that_is_not_there_is_named(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights\.resnet18: there is no file"):
        imagenet_state("resnet18", tmp_path / "none.pth")


def test_old_names_are_renamed(cache: Path, tmp_path: Path) -> None:
    old = "features.denseblock1.denselayer1.norm.1.weight"
    torch.save({old: torch.ones(64)}, tmp_path / "d.pth")
    assert list(imagenet_state("densenet161", tmp_path / "d.pth")) == [
        "features.denseblock1.denselayer1.norm1.weight"
    ]


def test_a_whole_module_must_be_that_of_torchvision(cache: Path, tmp_path: Path) -> None:
    module = import_torchvision().models.resnet18(weights=None)
    torch.save(module, tmp_path / "whole.pth")
    assert len(imagenet_state("resnet18", tmp_path / "whole.pth")) == 122
    module.layer1[0].bn1.eps = 0.1
    torch.save(module, tmp_path / "whole.pth")
    with pytest.raises(UserError, match=r"weights\.resnet18: .*layer1\.0\.bn1 has eps 0\.1"):
        imagenet_state("resnet18", tmp_path / "whole.pth")
