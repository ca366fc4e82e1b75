"""A kept trunk gives what a computed one does, on any number of processes, where it fits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lensdist.data.dataset import PackedSet
from lensdist.data.sampler import PackedSource
from lensdist.data.subset import View
from lensdist.data.transforms import Preprocess
from lensdist.models.ensemble import Ensemble
from lensdist.tasks.build import build_task
from lensdist.tasks.registry import AnyTask
from lensdist.tasks.types import Stage
from lensdist.training.feature_cache import cached
from lensdist.training.stages import StageSteps, _without_frozen
from lensdist.utils import rng
from tests.runs import CommonRun, FinetuneRun
from tests.unit.worlds import FakeWorld, on_all

pytestmark = pytest.mark.unit
LABELS = ("no_sub", "cdm", "axion")
TRAINS = ("members.0.sections.head.", "members.0.sections.block4.", "members.1.sections.head.")


def _parts(data: Path, **settings: Any) -> tuple[CommonRun, AnyTask, Ensemble, PackedSource]:
    raw: dict[str, Any] = {
        "task": "common", "run": {"dir": "x"}, "data": {"path": str(data)}, "init": "random",
        "model": {
            "members": ["resnet18", "shufflenet_v2_x0_5"], "image_size": 64, "head_dims": [8],
            "grey": "fold", "resize": 32,
        },
        "augment": {"rot180": True, "rot90": True}, "train": {"eval_batch": 20}, "seed": 5,
    }  # fmt: skip
    cfg = CommonRun(**{**raw, **settings})
    task = build_task(cfg, LABELS, Preprocess(cfg.preprocess, [0.0], [1.0]), None)
    torch.manual_seed(1)
    model = task.build().eval()
    assert isinstance(model, Ensemble)
    view = View(PackedSet(data), "train", cfg.data, 0, torch.device("cpu"))
    return cfg, task, model, PackedSource(view, 0)


def _cached(
    cfg: Any, task: Any, trunk: Any, source: Any, epochs: int = 9, world: Any = None
) -> Any:
    how = {"augment": cfg.augment, "seed": cfg.seed, "batch": cfg.train.eval_batch}
    return cached(task, trunk, source, epochs, world or FakeWorld(), **how, max_gb=cfg.cache.max_gb)


def _cache(parts: Any, epochs: int = 9, world: Any = None) -> Any:
    cfg, task, model, source = parts
    split = task.split(model, lambda name: name.startswith(TRAINS))
    assert split is not None
    return split, *_cached(cfg, task, split.trunk, source, epochs, world)


def test_equal_to_the_uncached_loss(tiny_set: Path) -> None:
    parts = _parts(tiny_set)
    cfg, task, model, source = parts
    split, kept, said = _cache(parts)
    assert "4 view(s) of 96 images" in said
    for epoch in range(3):
        key = rng.key(cfg.seed, "draw", epoch)
        for offset in (0, 17, 80):
            batch, features = source.take(epoch, offset, 16), kept.take(epoch, offset, 16)
            assert torch.equal(batch["label"], features["label"])
            assert torch.equal(batch["sample"], features["sample"])
            assert "image" not in features
            expected = task.loss(model, batch, key)
            found = task.loss(split.rest, features, key)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_every_view_is_used_and_differs(tiny_set: Path) -> None:
    parts = _parts(tiny_set)
    _, kept, _ = _cache(parts)
    table = kept._whole["features.0"]
    assert table.shape[:2] == (96, 4)
    assert all(not torch.equal(table[:, 0], table[:, k]) for k in (1, 2, 3))
    seen = {int(v) for e in range(4) for v in parts[1].view(torch.arange(96), rng.key(0, e))}
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_processes_gets_the_same_bits(tiny_set: Path, size: int) -> None:
    _, alone, _ = _cache(_parts(tiny_set))

    each = [_parts(tiny_set) for _ in range(size)]  # here: threads share torch's generator

    def work(world: Any) -> Any:
        return _cache(each[world.rank], world=world)[1]

    results = on_all(size, work)
    for kept in results:
        assert kept._whole.keys() == alone._whole.keys()
        for name, mine in kept._whole.items():
            torch.testing.assert_close(mine, alone._whole[name], rtol=0, atol=0, equal_nan=True)


def test_only_where_it_is_worth_it_and_fits(tiny_set: Path) -> None:
    parts = _parts(tiny_set)
    assert _cache(parts, epochs=4)[1] is parts[3]
    assert "4 epoch(s) do not exceed the 4 views" in _cache(parts, epochs=4)[2]
    small = _parts(tiny_set, cache={"max_gb": 1e-6})
    _, kept, said = _cache(small)
    assert kept is small[3]
    assert "is more than cache.max_gb 1e-06" in said
    whole = _cache(parts)[1]._whole
    size = sum(value.nbytes for value in whole.values()) / 1e9
    assert _cache(_parts(tiny_set, cache={"max_gb": 0.99 * size}))[2].startswith("not cached")
    off = _parts(tiny_set, cache={"max_gb": 0})
    assert _cache(off)[1:] == (off[3], "")


def test_a_stream_is_never_kept(tiny_set: Path) -> None:
    cfg, task, model, _ = _parts(tiny_set)
    split = task.split(model, lambda name: name.startswith(TRAINS))
    assert split is not None

    class Stream:
        size = 96

    stream: Any = Stream()
    assert _cached(cfg, task, split.trunk, stream) == (stream, "")


def test_a_fine_tuned_encoder_is_kept_too(tiny_set: Path) -> None:
    cfg = FinetuneRun(
        task="finetune", run={"dir": "x"}, data={"path": str(tiny_set)}, seed=5,
        augment={"rot90": True, "flip": True},
        model={"dim": 16, "depth": 1, "heads": 2, "mlp_dim": 16, "head_norm": True},
    )  # fmt: skip
    task = build_task(cfg, LABELS, Preprocess(cfg.preprocess, [0.0], [1.0]), None)
    model = task.build().eval()
    source = PackedSource(View(PackedSet(tiny_set), "train", cfg.data, 0, torch.device("cpu")), 0)
    assert task.split(model, lambda name: True) is None
    phase: Any = SimpleNamespace(cfg=cfg, task=task, source=source)
    stage = StageSteps(Stage(9, ("head.",)), 0, 54)
    rest, kept, said = _without_frozen(stage, model, phase, FakeWorld())  # type: ignore[arg-type]
    assert said.startswith("cached")
    expected = task.loss(model, source.take(1, 5, 16), rng.key(cfg.seed, "draw", 1))
    found = task.loss(rest, kept.take(1, 5, 16), rng.key(cfg.seed, "draw", 1))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_nothing_frozen_nothing_to_keep(tiny_set: Path) -> None:
    _, task, model, _ = _parts(tiny_set)
    assert task.split(model, lambda name: True) is None


def test_what_is_kept_is_computed_in_the_precision_of_the_run(tiny_set: Path) -> None:
    class Trunk(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (x.flatten(1)[:, :4] @ torch.ones(4, 2),)

    cfg, task, _, source = _parts(tiny_set)
    world = FakeWorld()
    world.accelerator.autocast = lambda: torch.autocast("cpu", torch.bfloat16)  # type: ignore[method-assign]
    kept, _ = _cached(cfg, task, Trunk(), source, world=world)
    assert kept._whole["features.0"].dtype == torch.bfloat16
