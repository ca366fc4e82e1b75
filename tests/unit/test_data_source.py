"""What the loop eats: a batch is a function of its position, and of nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from lensdist.data.config import DataConfig
from lensdist.data.dataset import Batch, PackedSet
from lensdist.data.packing.writer import PackedWriter
from lensdist.data.sampler import PackedSource
from lensdist.data.stream import StreamSource
from lensdist.data.subset import View
from lensdist.sim.config import SimConfig
from lensdist.utils.errors import RunError, UserError
from tests.unit.data_files import add_all

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
NAMES = ["a", "b", "c"]
N = 120


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedSet:
    """Sample i is an image of i and i + 1000, of class i % 3."""
    path = tmp_path_factory.mktemp("sets") / "packed"
    images = np.arange(N, dtype=np.float32)[:, None, None, None] + np.zeros((N, 1, 4, 4))
    images[:, :, 0, 0] += 1000  # a constant image would be refused
    with PackedWriter(path, labels=NAMES, seed=1, source={"test": True}) as writer:
        add_all(writer, images, np.arange(N) % 3)
        writer.finish()
    return PackedSet(path)


def config(**more: Any) -> DataConfig:
    return DataConfig(path=Path("unused"), **more)


def source(packed: PackedSet, seed: int = 0, **more: Any) -> PackedSource:
    return PackedSource(View(packed, "train", config(**more), seed, CPU), seed)


def same(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(torch.nan_to_num(a[k]), torch.nan_to_num(b[k])) for k in a
    )


@pytest.mark.parametrize("resident", ["no", "yes"])
def test_a_batch_is_a_function_of_seed_epoch_and_offset(packed: PackedSet, resident: str) -> None:
    first = source(packed, resident=resident)
    places = [(0, 0), (0, 8), (3, 16), (0, 8), (3, 0)]
    batches = [first.take(epoch, offset, 8) for epoch, offset in places]
    again = source(packed)
    for (epoch, offset), batch in reversed(list(zip(places, batches, strict=True))):
        assert same(again.take(epoch, offset, 8), batch)
    assert not same(source(packed, seed=1).take(0, 0, 8), batches[0])
    assert not same(batches[0], batches[4])
    halves = [again.take(0, 8, 4), again.take(0, 12, 4)]
    assert same(batches[1], {k: torch.cat([h[k] for h in halves]) for k in halves[0]})


def test_an_epoch_sees_every_image_once(packed: PackedSet) -> None:
    train = source(packed)
    epoch = train.take(5, 0, train.size)
    assert sorted(epoch["sample"].tolist()) == packed.indices("train").tolist()
    assert torch.equal(epoch["image"][:, 0, 1, 1].long(), epoch["sample"])
    assert torch.equal(epoch["label"], epoch["sample"] % 3)


def test_classes_are_chosen_and_numbered_in_the_order_asked_for(packed: PackedSet) -> None:
    view = View(packed, "train", config(classes=("c", "a")), 0, CPU)
    batch = view.gather(np.arange(len(view)))
    assert view.labels == ("c", "a")
    assert set(batch["label"].tolist()) == {0, 1}
    assert torch.equal(batch["label"], torch.where(batch["sample"] % 3 == 2, 0, 1))
    assert len(view) == sum(i % 3 != 1 for i in packed.indices("train"))


def test_few_labels_are_balanced_nested_and_drawn_by_the_seed(packed: PackedSet) -> None:
    def chosen(n: int, seed: int = 0, split: str = "train") -> set[int]:
        view = View(packed, split, config(labels_per_class=n), seed, CPU)
        return set(view.rows.tolist())

    for n in (1, 5, 20):
        assert np.bincount([i % 3 for i in chosen(n)]).tolist() == [n, n, n]
    assert chosen(1) < chosen(5) < chosen(20)
    assert chosen(5) != chosen(5, seed=1)
    rows = View(packed, "train", config(labels_per_class=5), 0, CPU).rows.tolist()
    assert rows == sorted(rows)
    assert chosen(5, split="val") == set(packed.indices("val").tolist())  # compared on the same


def test_few_images_are_nested_and_drawn_by_the_seed(packed: PackedSet) -> None:
    def chosen(n: int, seed: int = 0) -> list[int]:
        return list(View(packed, "train", config(train_images=n), seed, CPU).rows.tolist())

    found = chosen(20)
    assert len(found) == 20
    assert found == sorted(found)
    assert set(chosen(5)) < set(found) < set(packed.indices("train").tolist())
    assert found != packed.indices("train")[:20].tolist()
    assert found != chosen(20, seed=1)
    test = View(packed, "test", config(train_images=5), 0, CPU)
    assert test.rows.tolist() == packed.indices("test").tolist()


def test_labels_that_choose_are_taken_from_those_that_train(packed: PackedSet) -> None:
    def chosen(split: str, **more: Any) -> set[int]:
        return set(View(packed, split, config(**more), 0, CPU).rows.tolist())

    five = {"labels_per_class": 5, "choose_with": 1}
    assert np.bincount([i % 3 for i in chosen("train", **five)]).tolist() == [4, 4, 4]
    assert np.bincount([i % 3 for i in chosen("val", **five)]).tolist() == [1, 1, 1]
    assert chosen("test", **five) == set(packed.indices("test").tolist())
    images = {"train_images": 10, "choose_with": 2}
    assert [len(chosen(split, **images)) for split in ("train", "val")] == [8, 2]
    beyond = {"labels_per_class": 5, "choose_with": "split"}
    assert len(chosen("train", **beyond)) == 15
    assert chosen("val", **beyond) == set(packed.indices("val").tolist())


@pytest.mark.parametrize("more", [{"choose_with": 1}, {"labels_per_class": 5, "choose_with": 5}])
def test_what_chooses_leaves_something_to_train_on(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="choose_with"):
        config(**more)


@pytest.mark.parametrize(
    ("settings", "split", "sentence"),
    [
        ({"classes": ("a", "x")}, "train", "no class 'x'; it has a, b, c"),
        ({"labels_per_class": 50}, "train", r"50 asked for.*images of a"),
        ({"labels_per_class": 50, "choose_with": 9}, "val", r"choose_with: 9 asked for.* of a"),
        ({"train_images": 50, "choose_with": 49}, "val", r"choose_with: 49 asked for.* images"),
    ],
)
def test_what_the_set_has_not_is_refused(
    packed: PackedSet, settings: dict[str, Any], split: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        View(packed, split, config(**settings), 0, CPU)


def test_images_without_a_label_are_counted_unless_classes_leave_them_out(tmp_path: Path) -> None:
    labels = np.arange(N) % 4 - 1
    images = np.random.default_rng(0).random((N, 1, 4, 4))
    with PackedWriter(tmp_path / "set", labels=NAMES, seed=1, source={"test": True}) as writer:
        add_all(writer, images, labels)
        writer.finish()
    packed = PackedSet(tmp_path / "set")
    rows = packed.indices("train")
    whole = View(packed, "train", config(), 0, CPU)
    assert whole.unlabelled == (labels[rows] < 0).sum() > 0
    assert len(whole) == len(rows)
    some = View(packed, "train", config(classes=("c", "a")), 0, CPU)
    assert some.unlabelled == 0
    assert some.rows.tolist() == [row for row in rows if labels[row] in (0, 2)]


def test_damage_that_is_found_later_ends_the_run(
    packed: PackedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        raise RunError("damaged")

    view = View(packed, "train", config(), 0, CPU)
    monkeypatch.setattr(packed.verification, "check", check)
    with pytest.raises(RunError, match="damaged"):
        view.gather(np.array([0]))


# ---- the stream


def stream(labels: tuple[str, ...] = ("no_sub", "cdm", "axion"), seed: int = 0) -> StreamSource:
    return StreamSource(SimConfig(family="model_ii"), 24, labels, seed, CPU)


def test_a_stream_equals_itself_when_made_again() -> None:
    first = stream()
    batches = [first.take(epoch, offset, 6) for epoch, offset in ((0, 0), (0, 6), (2, 18))]
    again = stream()
    assert same(again.take(2, 18, 6), batches[2])
    assert same(again.take(0, 6, 6), batches[1])
    assert not same(stream(seed=1).take(0, 0, 6), batches[0])


def test_a_stream_never_repeats() -> None:
    made = stream()
    batches = [made.take(epoch, offset, 6) for epoch in range(3) for offset in range(0, 24, 6)]
    samples = torch.cat([b["sample"] for b in batches])
    assert samples.tolist() == list(range(72))
    pixels = torch.cat([b["image"] for b in batches]).flatten(1)
    assert len(torch.unique(pixels, dim=0)) == 72


def test_a_stream_numbers_its_classes_as_the_run_does() -> None:
    usual, turned = stream(), stream(("axion", "no_sub", "cdm"))
    names, others = ("no_sub", "cdm", "axion"), ("axion", "no_sub", "cdm")
    a, b = usual.take(0, 0, 12), turned.take(0, 0, 12)
    assert [names[i] for i in a["label"]] == [others[i] for i in b["label"]]
    assert torch.equal(torch.isfinite(b["mass"]), b["label"] == 0)  # axions have masses


def test_a_stream_simulates_the_classes_of_the_run_alone_and_pairs_have_none() -> None:
    batch = stream(("axion", "cdm")).take(0, 0, 12)
    assert set(batch["label"].tolist()) == {0, 1}
    assert torch.equal(torch.isfinite(batch["mass"]), batch["label"] == 0)
    pairs = StreamSource(SimConfig(family="sr"), 8, (), 0, CPU).take(0, 0, 2)
    assert pairs["label"].tolist() == [-1, -1]
