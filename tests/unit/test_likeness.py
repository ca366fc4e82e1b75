"""Predictions say whether an image is like the training images, for any network."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lensdist
from lensdist.cli import main
from lensdist.data.dataset import Batch, PackedSet
from lensdist.export.likeness import (
    LIKENESS,
    Likeness,
    fit,
    image_numbers,
    input_numbers,
    some,
    watched,
)
from lensdist.phases import completed
from lensdist.sim.config import SimConfig
from lensdist.sim.simulator import Simulator
from lensdist.utils.tensors import read_safetensors

SIZE = 64
WORDS = ["finetune/debug", "encoder=null", "data.n_per_class=120", "train.epochs=1"]
WORDS += ["train.max_steps=8", "optim.schedule.warmup_steps=0"]


class Net(nn.Module):
    """A network with a head, and weights that are always the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Conv2d(1, 8, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
        self.head = nn.Linear(128, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x).flatten(1))  # type: ignore[no-any-return]


def lenses(seed: int, count: int) -> Tensor:
    images = Simulator(SimConfig(family="model_ii", noise="euclid")).batch(
        seed, torch.arange(count)
    )["image"]
    return scaled(images)


def scaled(images: Tensor) -> Tensor:
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low)


def unlike_lenses(kind: str, count: int = 40) -> Tensor:
    """Noise, a star, or a smooth galaxy, each with noise of other strengths."""
    draw = torch.Generator().manual_seed(1)
    axis = torch.arange(SIZE) - (SIZE - 1) / 2
    radius = torch.hypot(axis[:, None], axis[None])
    width = {"noise": 1.0, "star": 1.0, "galaxy": 8.0}[kind]
    image = torch.zeros(SIZE, SIZE)
    if kind == "star":
        image = (-(radius / width).square() / 2).exp()
    if kind == "galaxy":
        image = (-radius / width).exp()
    noise = torch.randn(count, 1, SIZE, SIZE, generator=draw)
    return scaled(image + noise * torch.logspace(-3, -1.5, count)[:, None, None, None])


def batches(images: Tensor, size: int = 50) -> Iterator[Batch]:
    for first in range(0, len(images), size):
        part = images[first : first + size]
        yield {"image": part, "sample": torch.arange(first, first + len(part))}


def learn(net: Net, size: int = 50) -> Likeness:
    found = fit(
        [net.head],
        net.eval(),
        lambda network, batch: network(batch["image"]),
        batches(lenses(1, 600), size),
        batches(lenses(2, 400), size),
    )
    assert found is not None
    return found


def unlike(likeness: Likeness, net: Net, images: Tensor, size: int = 50) -> Tensor:
    with torch.no_grad(), watched(net, [net.head]) as record:
        for batch in batches(images, size):
            net(batch["image"])
    vectors = record.vectors(len(images))
    assert vectors is not None
    vectors["image"] = image_numbers(images, None)
    return likeness.unlike(vectors)


@pytest.fixture(scope="module")
def net() -> Net:
    return Net()


@pytest.fixture(scope="module")
def likeness(net: Net) -> Likeness:
    return learn(net)


def test_images_like_those_of_training_are_rarely_flagged(net: Net, likeness: Likeness) -> None:
    assert float((unlike(likeness, net, lenses(3, 600)) > 1).double().mean()) <= 0.02
    assert likeness.state()["images"] == {"train": 600, "val": 400}


@pytest.mark.parametrize("kind", ["noise", "star", "galaxy"])
def test_other_images_are_flagged(net: Net, likeness: Likeness, kind: str) -> None:
    assert float((unlike(likeness, net, unlike_lenses(kind)) > 1).double().mean()) >= 0.95


def test_the_result_does_not_depend_on_the_batches(net: Net, likeness: Likeness) -> None:
    again = learn(net, 97)
    assert again.limit == pytest.approx(likeness.limit, rel=1e-4)
    one, other = (unlike(each, net, lenses(3, 60), n) for each, n in ((likeness, 60), (again, 7)))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_the_state_is_kept(net: Net, likeness: Likeness) -> None:
    state, images = json.loads(json.dumps(likeness.state())), lenses(3, 20)
    again = Likeness.from_state(state, likeness.tensors())
    assert again is not None
    assert torch.equal(unlike(again, net, images), unlike(likeness, net, images))
    assert Likeness.from_state(None, {}) is None
    for damaged in ({"parts": 1}, {**state, "parts": {"other": 1.0}}):
        with pytest.raises(ValueError, match="likeness"):
            Likeness.from_state(damaged, likeness.tensors())
    cut = {**likeness.tensors(), f"{LIKENESS}input.middle": torch.zeros(2)}
    with pytest.raises(ValueError, match="likeness"):
        Likeness.from_state(state, cut)


def test_numbers_of_an_image_know_neither_unit_nor_offset_nor_bad_pixels() -> None:
    images = lenses(1, 3)
    plain = image_numbers(images, None)
    torch.testing.assert_close(image_numbers(40 * images + 7, None), plain, rtol=1e-3, atol=1e-3)
    good = torch.ones(3, 1, SIZE, SIZE, dtype=torch.bool)
    good[:, :, :2] = False
    hidden = torch.where(good, images, 0.0)
    assert torch.equal(
        image_numbers(hidden, good), image_numbers(torch.where(good, images, 9), good)
    )


def test_numbers_of_pixels_are_finite_for_any_image() -> None:
    for image in (
        torch.zeros(2, 3, 5, 9),
        torch.full((1, 1, 64, 64), 1e30),
        torch.eye(8)[None, None],
    ):
        assert input_numbers(image).isfinite().all()
        assert image_numbers(image, None).isfinite().all()


def test_what_is_not_a_number_is_unlike(net: Net, likeness: Likeness) -> None:
    odd = lenses(3, 2)
    odd[0, 0, 0, 0] = float("nan")
    assert (unlike(likeness, net, odd) > 1).tolist() == [True, False]


def test_too_few_validation_images_set_no_limit(net: Net) -> None:
    run = lambda network, batch: network(batch["image"])  # noqa: E731
    assert fit([net.head], net, run, batches(lenses(1, 30)), batches(lenses(2, 9))) is None
    twice = lambda network, batch: [network(batch["image"]) for _ in range(2)]  # noqa: E731
    assert fit([net.head], net, twice, batches(lenses(1, 30)), batches(lenses(2, 30))) is None


def test_some_places_are_at_equal_distances() -> None:
    assert np.concatenate(some(10)).tolist() == list(range(10))
    few = np.concatenate(some(10**6, 1000))
    assert len(few) == 1000
    assert few[0] == 0
    assert few[-1] == 10**6 - 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier, trained by the command itself."""
    run = tmp_path_factory.mktemp("likeness") / "run"
    assert main(["train", *WORDS, f"run.dir={run}"]) == 0
    return run


def test_a_run_exports_what_its_images_are_like(trained: Path, tmp_path: Path) -> None:
    model = lensdist.load(trained)
    assert model.likeness is not None
    assert "features" in model.likeness.parts
    packed = PackedSet(trained / "data")
    held = packed.gather(packed.indices("test"))["image"].numpy()
    found = model.predict(held)
    assert float(found["flag"].mean()) <= 0.15  # of about 36 images
    assert (found["flag"] == (found["unlike"] > 1)).all()
    noise = np.random.default_rng(0).normal(size=held.shape)
    assert model.predict(noise)["flag"].mean() > 0.95
    assert completed(trained) is not None
    copy = tmp_path / "copy"
    assert main(["export", str(trained), "--out", str(copy)]) == 0
    assert np.array_equal(lensdist.load(copy).predict(held)["unlike"], found["unlike"])


def test_what_a_column_flags_stays_flagged(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lensdist.load(trained)
    packed = PackedSet(trained / "data")
    held = packed.gather(packed.indices("train"))["image"].numpy()
    plain, answer = model.predict(held), model.does.predict

    def flagged(*args: Any) -> Any:
        found = answer(*args)
        return {**found, "flag": torch.ones(len(found["logits"]), dtype=torch.bool)}

    monkeypatch.setattr(model.does, "predict", flagged)
    assert not plain["flag"].all()
    assert model.predict(held)["flag"].all()


def test_a_run_that_goes_on_at_its_end_exports_the_same(trained: Path, tmp_path: Path) -> None:
    """It was killed after its last checkpoint, before the export was written."""
    again = Path(shutil.copytree(trained, tmp_path / "again"))
    before = {path.name: path.read_bytes() for path in (again / "export").iterdir()}
    (again / "COMPLETE.json").unlink()
    shutil.rmtree(again / "export")
    assert main(["train", *WORDS, f"run.dir={again}"]) == 0
    assert {path.name: path.read_bytes() for path in (again / "export").iterdir()} == before
    assert lensdist.load(again).likeness is not None


def test_the_table_holds_no_probabilities_of_flagged_images(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = PackedSet(trained / "data")
    held = packed.gather(packed.indices("test")[:1])["image"].numpy()
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "lens.npy", held[0])
    np.save(tmp_path / "in" / "other.npy", np.random.default_rng(0).normal(size=held[0].shape))
    out = tmp_path / "out.csv"
    assert main(["predict", str(trained), str(tmp_path / "in"), "--out", str(out)]) == 0
    with out.open(newline="") as file:
        lens, noise = csv.DictReader(file)
    assert "1 of 2 images are unlike" in capsys.readouterr().out
    assert (lens["flag"], noise["flag"]) == ("0", "1")
    assert lens["label"] != "?"
    assert float(lens["prob_axion"]) >= 0
    assert float(lens["unlike"]) < 1
    assert noise["label"] == "?"
    assert noise["prob_axion"] == ""
    assert float(noise["unlike"]) > 1
    assert float(noise["logit_axion"])
    assert noise["flagged_by"] == "unlike"


def test_an_export_of_before_does_not_say(trained: Path, tmp_path: Path) -> None:
    from lensdist.export.artifact import read_export, write_export
    from lensdist.export.model import LoadedModel

    description, weights = read_export(trained)
    del description["likeness"]
    old = LoadedModel(description, weights, "cpu")
    write_export(tmp_path / "old", old.network, dict(description.items()))
    model = lensdist.load(tmp_path / "old")
    assert model.likeness is None
    assert set(model.predict(np.random.default_rng(0).random((2, 64, 64)))) == {"logits", "probs"}
    assert not any(
        name.startswith(LIKENESS)
        for name in read_safetensors(
            tmp_path / "old" / "model.safetensors",
            (tmp_path / "old" / "model.safetensors").stat().st_size,
            lensdist.load(tmp_path / "old").description["sha256"]["model.safetensors"],
        )
    )
