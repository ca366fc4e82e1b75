"""From disk to network and back; augmentation; bad pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lensdist.data.augment import augment, draw_views, turned, views
from lensdist.data.config import AugmentConfig, PreprocessConfig
from lensdist.data.masks import image_means
from lensdist.data.transforms import Preprocess
from lensdist.tasks.build import build_task
from lensdist.utils import rng
from tests.runs import FinetuneRun, MaeRun

pytestmark = pytest.mark.unit

SCALES = ["minmax", "standard", "asinh", "none"]


def images(n: int = 6, bands: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return 40 * torch.rand(n, bands, 16, 16, generator=draw) - 3


def scaled_by(scale: str) -> Preprocess:
    return Preprocess(PreprocessConfig(scale=scale), [5.0, 6.0], [2.0, 3.0])  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", SCALES)
def test_inverse_leads_back(scale: str) -> None:
    x = images()
    there = scaled_by(scale)(x)
    torch.testing.assert_close(scaled_by(scale).inverse(there, x), x, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scale", ["minmax", "standard", "none"])
def test_a_unit_of_what_is_seen_is_so_much_on_disk(scale: str) -> None:
    x, made = images(), scaled_by(scale)
    good = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) > 0.2
    x[~good] = 1e3
    moved = made.alike(x + 0.5 * made.unit(x, good), x, good) - made.alike(x, x, good)
    torch.testing.assert_close(moved, torch.full_like(x, 0.5), rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", SCALES)
def test_batch_mates_do_not_matter(scale: str) -> None:
    x = images()
    assert torch.equal(scaled_by(scale)(x)[2:3], scaled_by(scale)(x[2:3]))


def test_scales_are_what_they_are_called() -> None:
    x = images()
    minmax = scaled_by("minmax")(x)
    assert minmax.amin((1, 2, 3)).tolist() == [0] * 6
    assert minmax.amax((1, 2, 3)).tolist() == pytest.approx([1] * 6)
    assert not scaled_by("minmax")(torch.full((1, 1, 4, 4), 7.0)).any()
    mean, std = torch.tensor([5.0, 6.0])[:, None, None], torch.tensor([2.0, 3.0])[:, None, None]
    torch.testing.assert_close(scaled_by("standard")(x), (x - mean) / std)
    torch.testing.assert_close(scaled_by("asinh")(x), torch.asinh(x / (0.1 * std)))
    assert torch.equal(scaled_by("none")(x), x)


def test_a_preprocess_is_rebuilt_from_its_state() -> None:
    made = Preprocess(PreprocessConfig(scale="asinh", softening=0.3), [1.0, 2.0], [3.0, 4.0])
    again = Preprocess.from_state({**made.state(), "later": "versions may add"})
    assert again.state() == made.state()
    assert torch.equal(again(images()), made(images()))


# ---- augmentation


def batch(n: int = 200) -> dict[str, Tensor]:
    image = torch.arange(n * 16.0).reshape(n, 1, 4, 4)
    extra = {"target": image.repeat_interleave(2, 2).repeat_interleave(2, 3), "badpix": image > 9}
    return {"image": image, "label": torch.arange(n), "sample": torch.arange(n) + 50, **extra}


@pytest.mark.parametrize(
    ("settings", "ways"),
    [({"rot180": True}, 2), ({"rot180": True, "rot90": True}, 4), ({"flip": True}, 4),
     ({"rot180": False, "flip": True}, 2), ({"flip": True, "rot90": True}, 8)],
)  # fmt: skip
def test_each_sample_is_turned_by_its_own_draw_and_all_of_it_alike(
    settings: dict[str, Any], ways: int
) -> None:
    before, cfg = batch(), AugmentConfig(**settings)
    after = augment(cfg, 3, before)
    turns = [lambda x, k=k: x.rot90(k, (-2, -1)) for k in range(4)]
    turns += [lambda x, t=t: t(x.flip(-1)) for t in turns[:4]]
    used = []
    for i in range(200):
        kinds = [
            k for k, t in enumerate(turns) if torch.equal(t(before["image"])[i], after["image"][i])
        ]
        assert len(kinds) == 1
        for name in ("target", "badpix"):
            assert torch.equal(turns[kinds[0]](before[name])[i], after[name][i])
        used.append(kinds[0])
    assert len(set(used)) == ways
    assert all(abs(used.count(k) / 200 - 1 / ways) < 0.16 for k in set(used))
    assert torch.equal(after["label"], before["label"])
    order = torch.tensor([7, 3, 100])
    few = augment(cfg, 3, {k: v[order] for k, v in before.items()})
    assert torch.equal(few["image"], after["image"][order])
    assert not torch.equal(augment(cfg, 4, before)["image"], after["image"])  # another epoch
    # What is kept of each view is what augmentation would have drawn.
    drawn = draw_views(cfg, 3, before["sample"])
    for k, way in enumerate(views(cfg)):
        for name, whole in turned(before, way).items():
            assert torch.equal(whole[drawn == k], after[name][drawn == k])


def test_no_augmentation_is_none() -> None:
    before = batch(4)
    assert augment(AugmentConfig(rot180=False), 3, before) is before


# ---- bad pixels


def task_of(kind: str, scale: str, **more: Any) -> tuple[Any, torch.nn.Module]:
    size = {"image_size": 16, "patch_size": 4, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 16}
    raw = {
        "task": kind, "run": {"dir": "unused"}, "data": {"path": Path("unused")},
        "model": size, **more,
    }  # fmt: skip
    preprocess = Preprocess(PreprocessConfig(scale=scale), [5.0], [2.0])  # type: ignore[arg-type]
    task: Any
    if kind == "mae":
        task = build_task(MaeRun(**{**raw, "mask": {"ratio": 0.5}}), ("a",), preprocess)
    else:
        task = build_task(FinetuneRun(**raw), ("a", "b"), preprocess, None)
    torch.manual_seed(0)
    return task, task.build().eval()


def with_bad_pixels(value: float, how: str) -> dict[str, Tensor]:
    image = images(8, 1)
    bad = torch.rand(image.shape, generator=torch.Generator().manual_seed(2)) < 0.1
    image = torch.where(bad, value, image)
    found = {"image": image, "label": torch.arange(8) % 2, "sample": torch.arange(8)}
    return found | ({"badpix": bad} if how == "badpix" else {"weight": (~bad).float()})


@pytest.mark.parametrize("how", ["badpix", "weight"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("kind", "more"), [("mae", {"loss": "image"}), ("mae", {"loss": "masked"}), ("finetune", {})]
)
@torch.no_grad()
def test_what_a_bad_pixel_holds_reaches_nothing(
    kind: str, more: dict[str, Any], scale: str, how: str
) -> None:
    task, model = task_of(kind, scale, **more)
    results = []
    for value in (0.0, 1e6, -50.0, float("nan")):
        found = with_bad_pixels(value, how)
        outputs = task.outputs(model, found)
        results.append([task.loss(model, found, 5), *[outputs[k] for k in sorted(outputs)]])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.isfinite(a.float()).all()
            assert torch.equal(a, b)


@pytest.mark.parametrize("bands", [1, 2])
def test_a_mean_is_weighted_image_by_image(bands: int) -> None:
    values, weight = images(4), images(4, bands).clamp_min(0)
    weight[0] = 0
    found = image_means(torch.where(weight > 0, values, float("nan")), weight)
    assert found[0] == 0
    for i in (1, 2, 3):
        count = weight[i].expand(2, -1, -1).double()
        wanted = (values[i].double() * count).sum() / count.sum()
        assert float(found[i]) == pytest.approx(float(wanted), rel=1e-5)
    torch.testing.assert_close(image_means(values, None), values.flatten(1).mean(1))


@torch.no_grad()
def test_good_pixels_do_count() -> None:
    task, model = task_of("mae", "none")
    found = with_bad_pixels(0.0, "badpix")
    before = float(task.loss(model, found, 5))
    good = int((~found["badpix"][0, 0, 0]).nonzero()[0])
    found["image"][0, 0, 0, good] += 5
    assert float(task.loss(model, found, 5)) != before


@torch.no_grad()
def test_weights_weigh_the_error() -> None:
    task, model = task_of("mae", "none", augment={"rot180": False})
    plain = {"image": images(4, 1), "sample": torch.arange(4)}
    weight = torch.rand(4, 1, 16, 16) + 0.1
    outputs = task.outputs(model, {**plain, "weight": weight})
    image, mask, _ = task._masked(plain, rng.key(task.seed, "evaluation mask"))
    error = (model(image, mask) - image).square()
    expected = (error * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))
    torch.testing.assert_close(outputs["mse"], expected)
